"""`glm-image train-lora`: LoRAs for planner or decoder from images with captions. Start at `train.py`."""
