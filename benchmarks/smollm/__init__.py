"""TRL's SFTTrainer on a real pretrained language model, full fine-tuning and LoRA."""
