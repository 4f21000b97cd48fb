"""Runs in an environment of its own (requirements/triton.txt): scores with NVIDIA's client of the V2 protocol, as its users do.

Its arguments are the address of the service, a key, and the model, whose version 1 answers x × 1.
"""

import sys

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.http.auth import BasicAuth
from tritonclient.utils import InferenceServerException

COLUMNS = {
    "x": ("FP64", np.array([2.0, 3.5, np.nan])),
    "count": ("INT64", np.array([1, 2, 3])),
    "name": ("BYTES", np.array(["a", "Köln", ""], dtype=object)),
}


def inputs(*, is_binary: bool, **changed: tuple[str, np.ndarray]) -> list[InferInput]:
    tensors = []
    for name, (datatype, values) in {**COLUMNS, **changed}.items():
        tensor = InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values, binary_data=is_binary)
        tensors.append(tensor)
    return tensors


def rejected(client: InferenceServerClient, model: str, version: str = "", **changed: tuple[str, np.ndarray]) -> tuple[str, str]:
    """Status and text of the error that the client raises."""
    try:
        client.infer(model, inputs(is_binary=True, **changed), model_version=version)
    except InferenceServerException as error:
        assert "an exception occurred in the client" not in error.message(), error  # it could not read the answer
        return error.status(), error.message()
    raise AssertionError("the request was answered")


def described(client: InferenceServerClient, model: str) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.is_model_ready(model) and client.is_model_ready(model, "1")
    assert not client.is_model_ready(model, "999") and not client.is_model_ready("nonsense")
    for metadata in (client.get_model_metadata(model), client.get_model_metadata(model, "1")):
        assert (metadata["name"], metadata["versions"]) == (model, ["1"]), metadata
        assert {tensor["name"]: tensor["datatype"] for tensor in metadata["inputs"]} == {
            name: datatype for name, (datatype, _) in COLUMNS.items()
        }


def scored(client: InferenceServerClient, model: str) -> None:
    for is_binary in (False, True):
        wanted = [InferRequestedOutput("output", binary_data=is_binary)]
        for outputs in (None, wanted):
            for packed in (None, "gzip", "deflate"):
                values = {"x": ("FP64", np.array([2.0, 3.5, 7.0]))} if not is_binary else {}  # JSON has no NaN
                result = client.infer(
                    model,
                    inputs(is_binary=is_binary, **values),
                    request_id="7",
                    outputs=outputs,
                    request_compression_algorithm=packed,
                    response_compression_algorithm=packed,
                )
                answer = result.get_response()
                assert (answer["model_name"], answer["model_version"], answer["id"]) == (model, "1", "7"), answer
                assert answer["parameters"]["decision_id"]
                np.testing.assert_array_equal(result.as_numpy("output"), values.get("x", COLUMNS["x"])[1])
    asked = [client.async_infer(f"{model}@champion", inputs(is_binary=True), request_id=str(number)) for number in range(8)]
    assert [answer.get_result().get_response()["id"] for answer in asked] == [str(number) for number in range(8)]
    assert client.infer(model, inputs(is_binary=True), model_version="1").as_numpy("output")[0] == 2.0


def failed(client: InferenceServerClient, model: str) -> None:
    status, text = rejected(client, model, count=("FP64", np.array([1.0, 4.7, 3.0])))
    assert (status, "row 1, column 'count'" in text) == ("422", True), (status, text)
    status, text = rejected(client, model, name=("BYTES", np.array([b"a", b"\xff", b""], dtype=object)))
    assert (status, "UTF-8" in text) == ("400", True), (status, text)
    for missing, version in (("nonsense", ""), (model, "999")):
        status, text = rejected(client, missing, version)
        assert (status, "/models lists" in text) == ("404", True), (status, text)
    status, text = rejected(client, model, x=("FP64", np.zeros(10_001)), count=("INT64", np.ones(10_001, dtype=np.int64)),
                            name=("BYTES", np.full(10_001, "a", dtype=object)))  # fmt: skip
    assert status == "413", (status, text)


def main(address: str, key: str, model: str) -> None:
    with InferenceServerClient(address, concurrency=4) as client:
        status, text = rejected(client, model)
        assert (status, "make key" in text) == ("401", True), (status, text)
        client.register_plugin(BasicAuth("anybody", key))
        described(client, model)
        scored(client, model)
        failed(client, model)


if __name__ == "__main__":
    main(*sys.argv[1:])
