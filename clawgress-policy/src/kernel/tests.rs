//! Kernel tables equal the evaluator.
