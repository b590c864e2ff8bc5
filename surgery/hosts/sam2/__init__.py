"""Stock `sam2`: `SAM2VideoPredictor` and `SAM2VideoPredictorVOS`."""
