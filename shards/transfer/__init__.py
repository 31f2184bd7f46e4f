"""Sets that travel: what leaves a machine (`outgoing`), to where (`target`), what moves (`plan`), and the two ways."""
