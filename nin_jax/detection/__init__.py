"""Where things are: boxes from class maps, and the measures of object detection."""
