"""The core of training: state, step, loop, callbacks. It knows no files and no flags."""
