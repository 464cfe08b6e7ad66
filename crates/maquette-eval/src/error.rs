/// Why a metric has no value for what it was given.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// Nothing to measure.
    #[error("{what}: {needed} needed, {got} given")]
    TooFew {
        /// What there is too little of.
        what: &'static str,
        /// How many the metric needs.
        needed: usize,
        /// How many there are.
        got: usize,
    },
    /// Two inputs that should have one size do not.
    #[error("{what}: {left} on one side and {right} on the other, but they must agree")]
    Sizes {
        /// What was compared.
        what: &'static str,
        /// The first size.
        left: usize,
        /// The second size.
        right: usize,
    },
    /// A number outside what the metric is defined for.
    #[error("{what} is {value}, but it must be {allowed}")]
    Range {
        /// What it is.
        what: &'static str,
        /// What was given.
        value: f64,
        /// What may be given.
        allowed: &'static str,
    },
    /// An iteration that did not come to its end.
    #[error("{0} did not converge: are the features all usable numbers?")]
    NoConvergence(&'static str),
}

/// At least `needed`, or the error that says so.
pub(crate) fn at_least(what: &'static str, needed: usize, got: usize) -> Result<(), EvalError> {
    match got >= needed {
        true => Ok(()),
        false => Err(EvalError::TooFew { what, needed, got }),
    }
}

/// Equal sizes, or the error that says so.
pub(crate) fn same(what: &'static str, left: usize, right: usize) -> Result<(), EvalError> {
    match left == right {
        true => Ok(()),
        false => Err(EvalError::Sizes { what, left, right }),
    }
}

/// A condition on a number, or the error that says so.
pub(crate) fn within(
    what: &'static str,
    value: f64,
    holds: bool,
    allowed: &'static str,
) -> Result<(), EvalError> {
    match holds {
        true => Ok(()),
        false => Err(EvalError::Range {
            what,
            value,
            allowed,
        }),
    }
}
