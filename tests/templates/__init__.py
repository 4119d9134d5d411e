"""Tests of the templates: metadata, images, scripts, the launch path."""
