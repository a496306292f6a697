"""The contract as a caller sees it that has nothing but the protos, and how its refusals read."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "proto"))

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

TIMEOUT = 60

messages, services = grpc.protos_and_services("shipreid/v1/shipreid.proto")
gallery_messages, gallery_services = grpc.protos_and_services("shipreid/v1/galleries.proto")
chips = grpc.protos("shipreid/v1/chip.proto")


def refused(call, request, code, reason, says=""):
    """Checks that a call is refused in the way that every service of the contract refuses; `says` is part of the text."""
    try:
        answer = call(request, timeout=TIMEOUT)
        # A call whose answers are a stream is refused where they are read.
        if not hasattr(answer, "DESCRIPTOR"):
            answer = list(answer)
    except grpc.RpcError as error:
        assert error.code() == code, error
        info = error_details_pb2.ErrorInfo()
        details = rpc_status.from_call(error).details
        assert any(detail.Unpack(info) for detail in details if detail.Is(info.DESCRIPTOR)), details
        assert (info.domain, info.reason) == ("shipreid", reason), info
        assert says in error.details(), (says, error.details())
        if code == grpc.StatusCode.INVALID_ARGUMENT:
            faults = error_details_pb2.BadRequest()
            assert any(detail.Unpack(faults) for detail in details if detail.Is(faults.DESCRIPTOR)), details
            assert all(fault.field for fault in faults.field_violations), faults
    else:
        raise AssertionError(f"{code} {reason} expected, not {answer}")
