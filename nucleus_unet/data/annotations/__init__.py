"""Annotations of QuPath (GeoJSON), ImageJ (ROIs), COCO (JSON) and cellpose (``_seg.npy``)."""
