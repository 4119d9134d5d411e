"""The job's project and region, by Beam's own options or the environment."""

import os

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions


def project_of(options: PipelineOptions) -> str | None:
    """The job's project, else the environment's."""
    project = options.view_as(GoogleCloudOptions).project
    return project or os.environ.get("GOOGLE_CLOUD_PROJECT") or None


def region_of(options: PipelineOptions) -> str | None:
    """The job's region, else the environment's location."""
    region = options.view_as(GoogleCloudOptions).region
    return region or os.environ.get("GOOGLE_CLOUD_LOCATION") or None
