"""`transformers`: `Sam3TrackerVideoModel`, and the tracker within `Sam3VideoModel`."""
