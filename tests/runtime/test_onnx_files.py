import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdturbo.bundle.external_data import external_locations

TENSOR = onnx.TensorProto.DESCRIPTOR


def leads_to_tensor(descriptor, seen=()):
    children = [field.message_type for field in descriptor.fields if field.message_type]
    return descriptor == TENSOR or any(leads_to_tensor(c, (*seen, c)) for c in children if c not in seen)


def fill(message, depth=7):
    """Put an external tensor into every field of the ONNX schema that can hold one, subgraphs of subgraphs included."""
    for field in message.DESCRIPTOR.fields:
        if not field.message_type or not leads_to_tensor(field.message_type) or not depth:
            continue
        value = getattr(message, field.name)
        fill(value.add() if hasattr(value, "add") else value, depth - 1)
    if message.DESCRIPTOR == TENSOR:
        fill.count += 1
        message.external_data.add(key="offset", value="0")
        message.external_data.add(key="location", value=f"weights/{fill.count}.data")
    return message


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.onnx"


@pytest.fixture(scope="module")
def full_model():
    fill.count = 0
    return fill(onnx.ModelProto())


def test_locations_are_found_wherever_the_schema_allows_a_tensor(file, full_model):
    file.write_bytes(full_model.SerializeToString())
    assert fill.count > 50
    assert external_locations(file) == {f"weights/{i}.data" for i in range(1, fill.count + 1)}


def test_a_model_without_external_data_names_nothing(file):
    onnx.save(
        onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 17]> g (float x) => (float y) { y = Abs(x) }'), file
    )
    assert external_locations(file) == set()


def test_the_last_of_several_values_counts_as_in_protobuf(file):
    model = onnx.ModelProto()
    entry = model.graph.initializer.add().external_data.add(key="location", value="good.data")
    file.write_bytes(model.SerializeToString())
    longer = entry.SerializeToString() + onnx.StringStringEntryProto(value="evil.data").SerializeToString()
    for number in (13, 5, 7):  # external_data, initializer, graph
        longer = bytes([number << 3 | 2, len(longer)]) + longer
    file.write_bytes(longer)
    assert onnx.load(file, load_external_data=False).graph.initializer[0].external_data[0].value == "evil.data"
    assert external_locations(file) == {"evil.data"}


@pytest.mark.parametrize("tag", ["ba80808010", "ba8080808001", "00"])
def test_field_numbers_out_of_range_are_refused(file, tag):
    """onnxruntime drops the high bits of an over-long tag: ba80808010 is field 7, the graph, to it."""
    graph = onnx.GraphProto()
    graph.initializer.add().external_data.add(key="location", value="secret")
    data = graph.SerializeToString()
    file.write_bytes(bytes.fromhex(tag) + bytes([len(data)]) + data)
    with pytest.raises(ValueError, match="out of range"):
        external_locations(file)


@pytest.mark.parametrize("data", ["3a", "3a05616263", "3a" + "ff" * 11, "0b", "0d00", "0900", b"<xml/>".hex()])
def test_files_that_are_no_protobuf_are_refused(file, data):
    file.write_bytes(bytes.fromhex(data))
    with pytest.raises(ValueError, match=r"runs past the end|ends inside a field|unknown protobuf wire type"):
        external_locations(file)


def test_deep_nesting_is_walked_without_recursion(file):
    data = b""
    for number in (13, 5) + (5, 1, 6) * 5000:  # entry in tensor in attribute in node in graph …
        length, size = len(data), bytearray()
        while length > 127:
            size.append(length & 127 | 128)
            length >>= 7
        data = bytes([number << 3 | 2, *size, length]) + data
    file.write_bytes(data)
    assert external_locations(file) == set()


@given(data=st.binary(max_size=200))
def test_any_bytes_give_a_set_or_a_value_error(tmp_path_factory, data):
    check_never_crashes(tmp_path_factory, data)


@given(data=st.data())
def test_damaged_models_give_a_set_or_a_value_error(tmp_path_factory, full_model, data):
    model = bytearray(full_model.SerializeToString()[:2000])
    for position, value in data.draw(st.dictionaries(st.integers(0, len(model) - 1), st.integers(0, 255))).items():
        model[position] = value
    check_never_crashes(tmp_path_factory, bytes(model))


def check_never_crashes(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "any.onnx"
    file.write_bytes(data)
    try:
        assert all(isinstance(location, str) for location in external_locations(file))
    except ValueError as error:
        assert str(error)
