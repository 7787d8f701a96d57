"""Names resolve to problems that train; the user's own problem is taken in every form, and refused with the reason."""

import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.nn import functional

from landscape import datasets, networks
from landscape.errors import LandscapeError, UsageError
from landscape.tasks import catalogue, find, is_code

HEAD = """
import numpy as np
import torch
from torch import nn
from torch.nn import functional

X, Y = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
XT, YT = torch.ones(2, 2), torch.tensor([1, 2])
class Pairs(torch.utils.data.Dataset):
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i): return X[i], int(Y[i])
"""


@pytest.fixture
def user(tmp_path):
    """Write a file of the user's with a function `problem` of this body; gives its spec."""

    def write(body, arguments="", head=HEAD):
        path = tmp_path / "mine.py"
        path.write_text(head + f"\ndef problem({arguments}):\n" + textwrap.indent(textwrap.dedent(body), "    "))
        return f"{path}:problem"

    return write


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# -- built-in tasks ---------------------------------------------------------------------------------------------------


def test_every_task_in_the_catalogue_is_named_by_its_two_halves_and_loads_nothing(monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda *a, **k: pytest.fail("loaded"))
    monkeypatch.setattr(networks, "build", lambda *a, **k: pytest.fail("built"))
    names = [name for name, _ in catalogue()]
    assert len(set(names)) == len(names)
    wanted = {"digits-mlp", "mnist-lenet-300-100", "mnist-conv2", "fashion-mnist-conv2", "cifar10-resnet20"}
    assert wanted | {"regression-mlp", "two-moons-mlp"} <= set(names)
    assert {"mnist-conv4", "cifar10-vgg16", "cifar100-resnet50", "imagefolder-resnet56"} <= set(names)
    assert not {"digits-resnet20", "cifar10-lenet-300-100", "mnist-resnet50"} & set(names)
    assert len(names) < 60  # it is read by people
    assert all(description for _, description in catalogue())


def test_digits_mlp():
    task = find("digits-mlp")
    assert sum(p.numel() for p in task.make(0).parameters()) == 6570
    assert task.loss == "cross-entropy"
    assert task.options["norm"] == "none"
    assert task.options["data"] is None
    assert set(task.defaults) == {
        *("steps", "lr", "momentum", "weight_decay", "batch_size", "optimizer", "schedule", "warmup", "augment")
    }
    with pytest.raises(TypeError):
        task.defaults["lr"] = 1


def test_hidden_sizes_of_a_task():
    task = find("two-moons-mlp-5-4")
    assert sum(p.numel() for p in task.make(0).parameters()) == 2 * 5 + 5 + 5 * 4 + 4 + 4 * 2 + 2
    assert task.options["network"] == "mlp-5-4"
    assert task.description.endswith("hidden layers of 5, 4 units")


@pytest.mark.parametrize(
    ("name", "loss", "outputs"), [("regression-mlp", "mse", 1), ("two-moons-mlp", "cross-entropy", 2)]
)
def test_the_data_settle_loss_and_outputs(name, loss, outputs):
    task = find(name)
    assert task.loss == loss
    assert task.make(0)(task.data.train.inputs).shape == (256, outputs)


def test_make_is_fixed_by_its_seed_and_leaves_the_global_generator():
    task = find("digits-mlp")
    before = torch.random.get_rng_state()
    assert torch.equal(weights(task.make(5)), weights(task.make(5)))
    assert not torch.equal(weights(task.make(5)), weights(task.make(6)))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_options_reach_the_network_and_the_record():
    task = find("digits-mlp", width=2, activation="tanh", norm="batch", limit=50)
    layers = dict(task.make(0).named_modules())
    assert layers["linear1"].out_features == 128
    assert isinstance(layers["activation1"], nn.Tanh)
    assert isinstance(layers["norm1"], nn.BatchNorm1d)
    assert len(task.data.train) == 50
    assert {"width": 2, "activation": "tanh", "norm": "batch", "limit": 50}.items() <= task.options.items()


def test_label_noise_reaches_the_rows_that_are_kept_and_the_record():
    clean, noisy = (find("digits-mlp", limit=50, label_noise=noise) for noise in (None, " uniform:0.4@3"))
    assert int((noisy.data.train.targets != clean.data.train.targets).sum()) == 20
    assert (clean.options["label_noise"], noisy.options["label_noise"]) == (None, "uniform:0.4@3")
    with pytest.raises(UsageError, match="two or more classes"):
        find("regression-mlp", label_noise="uniform:0.4")


def test_the_regression_network_is_smooth():
    assert find("regression-mlp").options["activation"] == "tanh"
    assert find("regression-mlp", activation="relu").options["activation"] == "relu"


def test_digits_mlp_trains_by_its_recipe():
    """The recipe reaches 0.97; asked are four standard errors of 360 rows less, 4 sqrt(0.97 * 0.03 / 360) = 0.036."""
    task = find("digits-mlp")
    model, train = task.make(0), task.data.train
    recipe = task.defaults
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe["lr"], momentum=recipe["momentum"])
    stream = torch.Generator().manual_seed(0)
    for _ in range(1000):
        index = torch.randint(len(train), (recipe["batch_size"],), generator=stream)
        optimizer.zero_grad()
        functional.cross_entropy(model(train.inputs[index]), train.targets[index]).backward()
        optimizer.step()
    accuracy = (model(task.data.test.inputs).argmax(1) == task.data.test.targets).float().mean()
    assert accuracy > 0.934


def test_a_hyphenated_data_set_is_not_cut_in_two(tmp_path):
    with pytest.raises(UsageError, match="fashion-mnist: there is no train-images"):
        find("fashion-mnist-lenet-300-100", data=tmp_path)


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ("digits-mpl", {}, "network in the task 'digits-mpl': 'mpl'. Did you mean 'mlp'"),
        ("digit-mlp", {}, "data set in the task 'digit-mlp': 'digit'. Did you mean 'digits'"),
        ("digits-mlp-16-x", {}, "cannot read the hidden sizes of the network 'mlp-16-x'"),
        ("digit-mlp-16-8", {}, "data set in the task 'digit-mlp-16-8': 'digit'. Did you mean 'digits'"),
        ("mnist", {}, "Did you mean 'mnist-.*module:function"),
        ("digits-resnet20", {}, r"resnet20 is convolutional and needs rows of shape .*\(64,\)"),
        ("digits-mlp", {"activation": "rellu"}, "Did you mean 'relu'"),
        ("mnist-conv2", {"norm": "batch"}, "no normalisation layers"),
        ("cifar10-resnet20", {"norm": "bach"}, "Did you mean 'batch'"),
        ("cifar10-resnet20", {"width": -1}, "width -1"),
        ("digits-mlp", {"label_noise": "unifrom:0.4"}, "Did you mean 'uniform'"),
    ],
)
def test_names_are_refused_before_anything_is_loaded(spec, options, says, monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=says):
        find(spec, **options)


# -- the user's own ---------------------------------------------------------------------------------------------------


def test_is_code():
    assert is_code("a.b:c")
    assert is_code("dir/file.py:f")
    assert not is_code("digits-mlp")


@pytest.mark.parametrize(
    ("data", "train", "test"),
    [
        ("(X, Y)", 6, 6),
        ("[X, Y]", 6, 6),
        ("(X.numpy(), Y.numpy())", 6, 6),
        ("((X, Y), (XT, YT))", 6, 2),
        ("((X, Y), None)", 6, 6),
        ("{'train': (X, Y), 'test': (XT, YT)}", 6, 2),
        ("{'train': (X, Y)}", 6, 6),
        ("Pairs(5)", 5, 5),
        ("(Pairs(5), Pairs(3))", 5, 3),
        ("{'train': Pairs(4), 'test': (XT, YT)}", 4, 2),
        ("torch.utils.data.TensorDataset(X, Y)", 6, 6),
        ("(X.numpy(), Y.numpy().astype('int32'))", 6, 6),
    ],
)
@pytest.mark.parametrize("form", ["return model, loss, {}", "return {{'model': model, 'loss': loss, 'data': {}}}"])
def test_data_in_every_form(user, data, train, test, form):
    task = find(user("model, loss = nn.Linear(2, 3), 'cross-entropy'\n" + form.format(data)))
    assert (len(task.data.train), len(task.data.test)) == (train, test)
    n = min(train, 6)
    assert task.data.train.inputs.tolist() == torch.arange(12.0).reshape(6, 2)[:n].tolist()
    assert task.data.train.targets.tolist() == [0, 1, 2, 0, 1, 2][:n]
    assert task.data.train.targets.dtype == torch.int64
    assert task.data.classes == ("0", "1", "2")
    assert ("no test rows" in task.description) == (train == test)
    if test == 2:
        assert torch.equal(task.data.test.inputs, torch.ones(2, 2))


@pytest.mark.parametrize(
    ("x", "kind"), [("(X, X + 1)", tuple), ("[X, X + 1]", tuple), ("{'a': X, 'b': X.numpy() + 1}", dict)]
)
def test_inputs_of_several_tensors(user, x, kind):
    task = find(user(f"return nn.Bilinear(2, 2, 3), 'cross-entropy', ({x}, Y)"))
    inputs = task.data.train.inputs
    assert isinstance(inputs, kind)
    second = inputs["b"] if kind is dict else inputs[1]
    assert torch.equal(second, torch.arange(12.0).reshape(6, 2) + 1)


@pytest.mark.parametrize(
    ("loss", "kept"),
    [
        ("'mse'", "mse"),
        ("functional.mse_loss", "mse"),
        ("nn.HuberLoss()", nn.HuberLoss),
        ("lambda outputs, targets: (outputs - targets).square().sum(1)", type(lambda: 0)),
    ],
)
def test_losses(user, loss, kept):
    task = find(user(f"return nn.Linear(2, 1), {loss}, (X, X[:, :1])"))
    assert task.loss == kept if isinstance(kept, str) else isinstance(task.loss, kept)
    assert task.data.classes is None
    assert torch.equal(task.data.train.targets, torch.arange(0.0, 12, 2)[:, None])


def test_labels_that_a_loss_ignores_are_left_to_it(user):
    task = find(user("return nn.Linear(2, 3), nn.CrossEntropyLoss(ignore_index=-1), (X, Y - 1)"))
    assert task.data.classes is None
    assert task.data.train.targets.min() == -1


def test_a_function_without_a_seed_is_run_again_on_the_stream(user):
    task = find(user("return nn.Linear(2, 3), 'cross-entropy', (X, Y)"))
    before = torch.random.get_rng_state()
    assert torch.equal(weights(task.make(1)), weights(task.make(1)))
    assert not torch.equal(weights(task.make(1)), weights(task.make(2)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert task.options["seeded"] is False


@pytest.mark.parametrize("arguments", ["seed", "seed=3", "*, seed"])
def test_a_function_that_takes_a_seed_is_given_it(user, arguments):
    body = "model = nn.Linear(2, 3)\nnn.init.constant_(model.weight, seed)\nreturn model, 'mse', (X + seed, Y)"
    task = find(user(body, arguments))
    assert task.make(7).weight.unique().tolist() == [7]
    assert task.data.train.inputs[0, 0] == 0  # the data are those of seed 0, whatever the model's seed


def test_a_shared_model_is_copied(user):
    task = find(user("return MODEL, 'cross-entropy', (X, Y)", head=HEAD + "\nMODEL = nn.Linear(2, 3)"))
    one, other = task.make(0), task.make(1)
    nn.init.zeros_(one.weight)
    assert other.weight.abs().sum() > 0
    assert task.make(2).weight.abs().sum() > 0


def test_a_module_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    body = HEAD + "\ndef problem():\n    'Mine.'\n    return nn.Linear(2, 3), 'cross-entropy', (X, Y)"
    (tmp_path / "my_package" / "work.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    task = find("my_package.work:problem", limit=3)
    assert task.description.startswith("Mine.")
    assert len(task.data.train) == 3
    assert sys.path == path
    with pytest.raises(UsageError, match=r"no module 'my_package\.wrok'"):
        find("my_package.wrok:problem")
    with pytest.raises(UsageError, match="no module 'nowhere_at_all'"):
        find("nowhere_at_all.work:problem")


def test_a_file_may_import_its_neighbour(user, tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("from torch import nn\nMODEL = nn.Linear(2, 3)\n")
    spec = user("from neighbour_of_mine import MODEL\nreturn MODEL, 'cross-entropy', (X, Y)")
    assert find(spec).make(0)(torch.ones(1, 2)).shape == (1, 3)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("x = 1\nraise ValueError('my mistake')", ["line 16", "raise ValueError('my", "ValueError: my mistake"]),
        ("import a_module_that_is_not_there", ["line 15", "No module named 'a_module_that_is_not_there'"]),
        ("raise SystemExit(3)", ["line 15", "SystemExit: 3"]),
        ("class D(Pairs):\n    def __getitem__(self, i): return 1 / 0\nreturn nn.Linear(2, 3), 'mse', D(2)", ["1 / 0"]),
    ],
)
def test_the_users_exception_shows_the_users_lines_only(user, body, says):
    spec = user(body)
    with pytest.raises(LandscapeError) as caught:
        find(spec)
    text = str(caught.value)
    assert not isinstance(caught.value, UsageError)
    assert spec in text
    assert "mine.py" in text
    assert "tasks.py" not in text
    assert "importlib" not in text
    for part in says:
        assert part in text


def test_an_error_while_the_file_is_read(user):
    with pytest.raises(LandscapeError, match=r"(?s)mine\.py.*line 1.*ZeroDivisionError") as caught:
        find(user("pass", head="A = 1 / 0"))
    assert "importlib" not in str(caught.value)
    with pytest.raises(LandscapeError, match=r"(?s)mine\.py.*line 1.*SyntaxError"):
        find(user("pass", head="A = ="))


MODEL = "nn.Linear(2, 3)"


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("None", "returned None"),
        ("1, 2", r"returned a tuple of \(1, 2\).*Return \(model, loss, data\)"),
        ("{'model': nn.Linear(2, 3), 'loss': 'mse'}", "a dict without data"),
        ("{'modle': 1}", "Did you mean 'model'"),
        ("nn.Linear, 'mse', (X, Y)", "as its model the class Linear, not an nn.Module instance"),
        (f"{MODEL}, 'cross_entropy', (X, Y)", "Did you mean 'cross-entropy'"),
        (f"{MODEL}, nn.CrossEntropyLoss, (X, Y)", "a loss is a name"),
        (f"{MODEL}, 'mse', X", r"are Tensor of shape \(6, 2\) and float32"),
        (f"{MODEL}, 'mse', (X, Y, XT, YT)", "are a tuple of"),
        (f"{MODEL}, 'mse', {{'trian': (X, Y)}}", "Did you mean 'train'"),
        (f"{MODEL}, 'mse', {{'test': (X, Y)}}", "without 'train'"),
        (f"{MODEL}, 'mse', (X, X[:4])", "one number of rows"),
        (f"{MODEL}, 'mse', ((X, Y), (X[:, :1], Y))", "a test row is float32 of shape"),
        (f"{MODEL}, 'mse', (X * float('nan'), Y)", "NaN"),
        (f"{MODEL}, 'mse', (np.array(['a', 'b']), np.zeros(2))", "are numpy <U1"),
        (f"{MODEL}, 'mse', ('X', Y)", "inputs of .* are 'X'"),
        (f"{MODEL}, 'mse', ((), Y)", "an empty tuple"),
        (f"{MODEL}, 'mse', torch.utils.data.DataLoader(Pairs(4))", r"DataLoader give its \.dataset"),
        (f"{MODEL}, 'mse', (torch.utils.data.DataLoader(Pairs(4)), None)", r"DataLoader give its \.dataset"),
        (f"{MODEL}, 'mse', iter([1])", "An iterator has no length"),
        (f"{MODEL}, 'mse', Pairs(0)", "is empty"),
        (f"{MODEL}, 'mse', torch.utils.data.TensorDataset(X)", r"An item is \(x, y\)"),
        (f"{MODEL}, 'mse', torch.utils.data.TensorDataset(X, Y, Y)", r"An item is \(x, y\)"),
    ],
)
def test_bad_forms(user, returned, says):
    with pytest.raises(UsageError, match=says):
        find(user(f"return {returned}"))


def test_items_that_do_not_stack(user):
    body = """
    class Ragged(Pairs):
        def __getitem__(self, i): return torch.zeros(i + 1), 0
    return nn.Linear(2, 3), 'mse', Ragged(3)
    """
    with pytest.raises(UsageError, match=r"cannot be stacked: .*one shape in every item"):
        find(user(body))


def test_label_noise_reaches_the_users_classes_and_no_other_targets(user):
    spec = user("return nn.Linear(2, 3), 'cross-entropy', ((X, Y), (XT, YT))")
    noisy = find(spec, label_noise="pairwise:0.5")
    moved = noisy.data.train.targets - torch.tensor([0, 1, 2, 0, 1, 2])
    assert int((moved % 3 == 1).sum()) == 3
    assert int((moved == 0).sum()) == 3
    assert noisy.data.test.targets.tolist() == [1, 2]
    assert noisy.options["label_noise"] == "pairwise:0.5"
    with pytest.raises(UsageError, match="two or more classes"):
        find(user("return nn.Linear(2, 3), 'mse', (X, X @ torch.ones(2, 3))"), label_noise="pairwise:0.5")


def test_bad_names_and_options(user, tmp_path):
    spec = user("return nn.Linear(2, 3), 'mse', (X, X)")
    with pytest.raises(UsageError, match="Did you mean 'problem'"):
        find(spec.replace(":problem", ":problme"))
    with pytest.raises(UsageError, match="is Tensor of shape"):
        find(spec.replace(":problem", ":X"))
    with pytest.raises(UsageError, match=r"there is no file .*gone\.py"):
        find(f"{tmp_path / 'gone.py'}:problem")
    with pytest.raises(UsageError, match="not a module's name"):
        find(":problem")
    with pytest.raises(UsageError, match="needs the arguments depth"):
        find(user("pass", "depth, seed"))
    with pytest.raises(UsageError, match="limit of -1"):
        find(user("return nn.Linear(2, 3), 'mse', (X, X[:, :1])"), limit=-1)
    for options in ({"width": 2}, {"activation": "tanh"}, {"norm": "none"}, {"data": tmp_path}, {"download": True}):
        with pytest.raises(UsageError, match=f"--{next(iter(options))} would do nothing"):
            find(spec, **options)


@pytest.mark.parametrize(
    ("made", "kept"),
    [
        ("y.bool()", torch.int64),
        ("y.int()", torch.int64),
        ("y.float()", torch.float32),
        ("y.double()", torch.float64),
    ],
)
def test_targets_of_every_kind_reach_a_loss_that_does_not_classify(tmp_path, made, kept):
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\n"
        f"def make():\n    x = torch.ones(8, 3)\n    y = torch.tensor([[0], [1]] * 4)\n    return nn.Linear(3, 1), nn.BCEWithLogitsLoss(), (x, {made})\n"
    )
    task = find(f"{tmp_path / 'own.py'}:make")
    assert task.data.train.targets.dtype == kept
    assert task.data.train.targets.flatten().tolist() == [0, 1] * 4
    assert task.data.classes is None
