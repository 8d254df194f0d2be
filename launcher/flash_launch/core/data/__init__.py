"""Flash's import paths below `flash.core.data`."""
