"""The keys of a LLaMA-Factory training file (0.9.5, and older spellings found in the wild) that are not translated one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Paths, logging, caching, speed, other stages: they change nothing in what is learnt here.
NO_MEANING = frozenset(
    """
    accelerator_config activation_checkpointing activation_checkpointing_kwargs asft_alpha audio_sampling_rate auto_find_batch_size
    average_tokens_across_devices
    badam_mask_mode badam_mode badam_start_block badam_switch_interval badam_switch_mode badam_update_ratio badam_verbose
    batch_eval_metrics bf16_full_eval buffer_size cache_dir compute_accuracy crop_to_patches data_shared_file_system dataloader_in_order
    dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory
    dataloader_prefetch_factor dataset_dir ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters
    ddp_static_graph ddp_timeout debug deepspeed disable_tqdm do_eval do_predict do_sample do_train eaft_alpha enable_jit_checkpoint
    enable_liger_kernel enable_torch_profiler eval_accumulation_steps eval_delay eval_do_concat_batches eval_num_beams
    eval_on_each_dataset eval_on_start eval_steps eval_strategy eval_use_gather_object evaluation_strategy export_device export_dir
    export_hub_model_id export_legacy_format export_quantization_bit export_quantization_dataset export_quantization_maxlen
    export_quantization_nsamples export_size flash_attn fp16_full_eval fp8_backend fp8_enable_fsdp_float8_all_gather
    freeze_language_model freeze_multi_modal_projector freeze_vision_tower fsdp fsdp_config galore_layerwise generation_config
    generation_max_length generation_num_beams gradient_checkpointing_kwargs greater_is_better group_by_length hf_hub_token hub_always_push
    hub_model_id hub_private_repo hub_revision hub_strategy hub_token hyper_parallel_args ignore_data_skip image_do_pan_and_scan
    image_max_pixels image_min_pixels include_effective_tokens_per_second include_for_metrics include_num_input_tokens_seen
    infer_backend infer_dtype kto_chosen_weight kto_rejected_weight kt_expert_checkpoint_path kt_lora_expert_intermediate_size
    kt_lora_expert_num kt_use_lora_experts kt_weight_path label_names length_column_name length_penalty liger_kernel_config
    load_best_model_at_end local_rank log_level log_level_replica log_on_each_node logging_dir logging_first_step
    logging_nan_inf_filter logging_steps logging_strategy low_cpu_mem_usage master_addr master_port max_length
    max_new_tokens media_dir metric_for_best_model ms_hub_token num_beams offload_folder om_hub_token output_dir overwrite_cache
    overwrite_output_dir parallelism_config per_device_eval_batch_size pissa_convert pissa_iter plot_loss ppo_buffer_size ppo_epochs
    ppo_score_norm ppo_target ppo_whiten_rewards predict_with_generate prediction_loss_only preprocessing_batch_size
    preprocessing_num_workers print_param_status profile_modules profiler_active_steps profiler_output_dir profiler_profile_memory
    profiler_record_shapes profiler_repeat profiler_wait_steps profiler_warmup_steps profiler_with_stack project push_to_hub
    quantization_device_map ray_init_kwargs ray_num_workers ref_model_quantization_bit remove_unused_columns repetition_penalty
    report_to restore_callback_states_from_checkpoint resume_from_checkpoint reward_model reward_model_adapters
    reward_model_quantization_bit reward_model_type run_name save_on_each_node save_only_model save_safetensors save_steps
    save_strategy save_total_limit sglang_config sglang_lora_backend sglang_maxlen sglang_mem_fraction sglang_tp_size
    simpo_gamma skip_memory_metrics skip_special_tokens sortish_sampler streaming swanlab_api_key swanlab_lark_secret
    swanlab_lark_webhook_url swanlab_logdir swanlab_mode swanlab_project swanlab_run_name swanlab_workspace temperature tf32
    tokenized_path tool_format top_k top_p torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps
    trackio_bucket_id trackio_space_id trackio_static_space_id use_audio_in_video use_cache use_cpu use_fast_tokenizer use_kt
    use_kv_cache use_liger_kernel use_mca use_ray use_reentrant_gc use_swanlab use_unsloth use_unsloth_gc use_v1_kernels
    video_fps video_max_pixels video_maxlen video_min_pixels vllm_config vllm_enforce_eager vllm_gpu_util vllm_max_lora_rank vllm_maxlen
    """.split()  # noqa: SIM905 - a list of quoted names would be three times as long
)

# Key -> its value in LLaMA-Factory when it is not given. Any other value would change what is learnt.
UNSUPPORTED: Mapping[str, Any] = {
    "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "adapter_folder": None, "adapter_name_or_path": None,
    "add_special_tokens": None, "add_tokens": None, "additional_target": None, "apollo_layerwise": False, "apollo_proj": "random",
    "apollo_proj_type": "std", "apollo_rank": 16, "apollo_scale": 32.0, "apollo_scale_front": False, "apollo_scale_type": "channel",
    "apollo_target": "all", "apollo_update_interval": 200, "create_new_adapter": False, "data_seed": None, "dataloader_drop_last": False,
    "default_system": None, "disable_shuffling": False, "double_quantization": True, "dpo_label_smoothing": 0.0, "enable_thinking": True,
    "fp16": False, "fp8": False, "freeze_extra_modules": None, "freeze_trainable_modules": "all", "galore_proj_type": "std",
    "galore_target": "all", "ignore_pad_token_for_loss": True, "init_special_tokens": "noise_init", "interleave_probs": None,
    "label_smoothing_factor": 0.0, "ld_alpha": None, "loraplus_lr_embedding": 1e-6, "lr_scheduler_kwargs": None,
    "mask_history": False, "max_steps": -1, "mix_strategy": "concat", "mixture_of_depths": None, "model_revision": "main",
    "module_dropout": 0.0, "moe_aux_loss_coef": None, "neftune_noise_alpha": None, "new_special_tokens_config": None, "oft_block_size": 32,
    "oft_rank": 0, "oft_target": "all", "optim_args": None, "optim_target_modules": None, "pref_bco_weight": 0.0, "pref_ftx": 0.0,
    "pref_loss": "sigmoid", "preserve_thinking": False, "pure_bf16": False, "quantization_method": "bnb", "quantization_type": "nf4",
    "ref_model": None, "ref_model_adapters": None, "resize_vocab": False, "rope_scaling": None, "shift_attn": False,
    "split_special_tokens": False, "train_from_scratch": False, "train_on_prompt": False, "train_sampling_strategy": "random",
    "upcast_layernorm": False, "upcast_lmhead_output": False, "use_adam_mini": False, "use_apollo": False,
    "use_asft_loss": False, "use_badam": False, "use_dft_loss": False, "use_eaft_loss": False, "use_hyper_parallel": False,
    "use_llama_pro": False, "use_muon": False,
}  # fmt: skip
