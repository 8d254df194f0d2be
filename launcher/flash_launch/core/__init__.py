"""Flash's import paths below `flash.core`; what they give lies elsewhere."""
