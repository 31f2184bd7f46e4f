"""What TRL, verl and transformers call the settings of a training run, and what they are called here.

For messages alone: none of these words is accepted. Left out: words that are the same, and what has no counterpart."""

from __future__ import annotations

__all__ = ["OTHER_NAMES"]

_SAME: dict[str, tuple[str, ...]] = {
    "policy": ("model_name_or_path", "model_name", "model_path"),
    "shards": ("train_files", "train_dataset", "dataset_name", "train_batch"),
    "out": ("output_dir", "default_local_dir", "run_dir"),
    "dtype": ("bf16", "fp16", "torch_dtype", "mixed_precision"),
    "trackers": ("report_to", "logger", "loggers"),
    "length.amount with length.unit=epochs": ("epochs", "num_train_epochs", "total_epochs", "num_epochs"),
    "length.amount with length.unit=steps": ("steps", "max_steps", "total_training_steps", "num_steps"),
    "rollout.group": ("num_generations", "n", "group_size", "num_rollouts", "rollouts_per_prompt"),
    "rollout.prompts, prompts of a step (each has rollout.group rollouts)": (
        "per_device_train_batch_size", "train_batch_size", "batch_size", "generation_batch_size"),
    "rollout.max_new_tokens": ("max_completion_length", "max_response_length", "max_tokens", "response_length"),
    "rollout.batch_prompts": ("log_prob_micro_batch_size", "log_prob_micro_batch_size_per_gpu"),
    "loss.kl, weight of the KL to the start policy": ("beta", "kl_coef", "kl_loss_coef", "kl_beta", "kl_weight"),
    "loss.clip_low and loss.clip_high": ("clip_ratio", "cliprange", "clip_eps"),
    "loss.clip_low": ("epsilon", "clip_ratio_low"),
    "loss.clip_high": ("epsilon_high", "clip_ratio_high"),
    "rollout.redraws": ("filter_groups", "dynamic_sampling", "max_num_gen_batches", "max_resample_times"),
    "reward.extra": ("reward_funcs", "reward_weights", "custom_reward_function", "reward_function"),
    "reward.overlong_tokens": ("overlong_buffer", "overlong_buffer_len", "soft_max_length", "soft_punish_cache"),
    "loss.entropy": ("entropy_coeff", "entropy_coef", "ent_coef", "entropy_bonus"),
    "loss.mask_truncated": ("mask_truncated_completions", "overlong_filtering"),
    "loss.dual_clip": ("clip_ratio_c", "delta"),
    "loss.kind, grpo, dr_grpo, dapo or gspo": (
        "loss_type", "loss_agg_mode", "adv_estimator", "scale_rewards", "algorithm", "importance_sampling_level",
        "norm_adv_by_std_in_grpo"),
    "optimizer.lr": ("learning_rate",),
    "optimizer.betas": ("adam_beta1", "adam_beta2"),
    "optimizer.eps": ("adam_epsilon",),
    "optimizer.grad_clip": ("max_grad_norm", "clip_grad"),
    "optimizer.warmup_steps": ("warmup_ratio", "lr_warmup_steps", "lr_warmup_steps_ratio"),
    "optimizer.schedule, constant, linear or cosine": (
        "lr_scheduler_type", "lr_scheduler", "lr_warmup_style", "warmup_style", "lr_scheduler_kwargs"),
    "optimizer.min_lr": ("min_lr_ratio", "min_lr_rate", "lr_min"),
    "optimizer.inner_epochs": ("num_iterations", "ppo_epochs"),
    "optimizer.mini_batches, updates per pass (not their size)": ("ppo_mini_batch_size",),
    "optimizer.micro_prompts, prompts in one forward and backward; the gradient is the same": (
        "gradient_accumulation_steps", "ppo_micro_batch_size", "ppo_micro_batch_size_per_gpu", "micro_batch_size"),
    "optimizer.checkpoint_activations": ("gradient_checkpointing", "enable_gradient_checkpointing",
                                         "activation_checkpointing"),
    "optimizer.offload_activations": ("enable_activation_offload", "activation_offloading"),
    "reference=host": ("ref_model_offload", "param_offload"),
    "lora.rank": ("lora_r", "lora_rank", "peft_config"),
    "lora.alpha": ("lora_alpha",),
    "lora.dropout": ("lora_dropout",),
    "lora.targets": ("lora_target_modules", "target_modules"),
    "lora.rslora": ("use_rslora",),
    "lora.dora": ("use_dora",),
    "validation.every": ("eval_steps", "test_freq", "eval_freq"),
    "validation.batch_prompts": ("per_device_eval_batch_size", "val_batch_size"),
    "checkpoint.every": ("save_steps", "save_freq"),
    "checkpoint.keep": ("save_total_limit", "max_actor_ckpt_to_keep"),
    "checkpoint.export=best": ("load_best_model_at_end",),
    "the command's --resume": ("resume_from_checkpoint", "resume_mode"),
}

OTHER_NAMES = {word: here for here, words in _SAME.items() for word in words}
"""a word of theirs: the setting here"""
