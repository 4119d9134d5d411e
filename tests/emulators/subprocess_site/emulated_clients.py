"""Points the three BigQuery clients that lack a setting for it at an emulator.

Of the clients that Beam and this project use, ``google.cloud.bigquery.Client`` follows
``BIGQUERY_EMULATOR_HOST`` by itself. The apitools client has its URL as a class attribute, and
``BigQueryReadClient`` and ``BigQueryWriteClient`` open a TLS channel unless they are passed
another. Each function takes the module that defines its class, so that an import hook can call it
as the module loads, and returns a function that undoes the change. Imports nothing heavy:
``sitecustomize`` loads it everywhere.
"""

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

REST_CLIENT_MODULE = "apache_beam.io.gcp.internal.clients.bigquery.bigquery_v2_client"
READ_CLIENT_MODULE = "google.cloud.bigquery_storage_v1.services.big_query_read.client"
WRITE_CLIENT_MODULE = "google.cloud.bigquery_storage_v1.services.big_query_write.client"


def point_rest_client(module: ModuleType) -> Callable[[], None]:
    """Makes Beam's apitools client call the server at ``BIGQUERY_EMULATOR_HOST``."""
    client = module.BigqueryV2
    before = client.BASE_URL
    client.BASE_URL = os.environ["BIGQUERY_EMULATOR_HOST"].rstrip("/") + "/bigquery/v2/"

    def undo() -> None:
        client.BASE_URL = before

    return undo


def point_read_client(module: ModuleType) -> Callable[[], None]:
    """Makes every Storage Read client use ``BIGQUERY_STORAGE_EMULATOR_HOST``, without TLS."""
    return _point_storage_client(module.BigQueryReadClient, module.BigQueryReadGrpcTransport)


def point_write_client(module: ModuleType) -> Callable[[], None]:
    """Makes every Storage Write client use ``BIGQUERY_STORAGE_EMULATOR_HOST``, without TLS."""
    return _point_storage_client(module.BigQueryWriteClient, module.BigQueryWriteGrpcTransport)


def _point_storage_client(client: Any, transport: Any) -> Callable[[], None]:
    before = client.__init__
    address = os.environ["BIGQUERY_STORAGE_EMULATOR_HOST"]

    def init(self: Any, **options: Any) -> None:
        if options.get("transport") is None:
            import grpc

            unlimited = [
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ]
            channel = grpc.insecure_channel(address, options=unlimited)
            options = {"transport": transport(channel=channel)}
        before(self, **options)

    client.__init__ = init

    def undo() -> None:
        client.__init__ = before

    return undo


POINT_CLIENT = {
    REST_CLIENT_MODULE: point_rest_client,
    READ_CLIENT_MODULE: point_read_client,
    WRITE_CLIENT_MODULE: point_write_client,
}
