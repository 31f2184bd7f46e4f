"""What every test shares: quiet threads, an offline hub, skips that say why."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# A property is about values, not about how busy the machine is.
settings.register_profile("taro", deadline=None)
settings.load_profile("taro")

# Before torch or a hub client is imported anywhere: two cores, no network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("NO_COLOR", "1")

# A shell ignores Ctrl-C for what it starts in the background, and so would all that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where torch sees no CUDA device."""
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if not wanted:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests read from remote places is not kept in the cache of whoever runs them."""
    os.environ["TARO_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real annotations and videos that TARO_REAL_DATA names; the test is skipped where it is unset."""
    folder = os.environ.get("TARO_REAL_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TARO_REAL_DATA names no folder of real annotations and videos")
    return Path(folder).resolve()
