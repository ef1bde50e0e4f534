"""The settings of a run that takes seconds: the network "tiny" on scikit-learn's digits at 16 px."""

# The same everywhere, so that its programs are compiled once for all tests.
TINY = {
    "epochs": 2,
    "batch_size": 64,
    "init": "scratch",
    "model.name": "tiny",
    "data.source": "digits:0-4",
    "data.size": 16,
    "data.crop_padding": 2,
    "data.flip": False,
    "optimizer.learning_rate": 0.02,
    "limit_train_examples": 320,
    "limit_eval_examples": 61,
}
