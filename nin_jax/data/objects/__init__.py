"""Pictures with objects in them: boxes, annotations, composed scenes, proposals and hypotheses."""
