//! The parameters of a model by path: what groups, penalties and clipping are defined on.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

use crate::TrainError;

/// One float parameter of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its path in the module tree, `blocks.0.mlp.up.weight`.
    pub path: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Whether it is trained.
    pub trained: bool,
}

impl Parameter {
    /// A matrix between two hidden representations: neither an embedding nor an output head.
    pub fn is_hidden_matrix(&self) -> bool {
        const EDGES: [&str; 5] = ["embed", "wte", "wpe", "head", "codebook"];
        self.shape.len() == 2
            && !self
                .path
                .split('.')
                .any(|part| EDGES.iter().any(|edge| part.contains(edge)))
    }
}

/// Every float parameter, in module order.
pub fn parameters<M: Module>(model: &M) -> Vec<Parameter> {
    let mut list = Lister::default();
    model.visit(&mut list);
    list.found
}

/// The paths of the trained parameters that match `pattern`.
///
/// # Errors
/// [`TrainError::NoSuchParameters`] when none does.
pub fn matching<M: Module>(model: &M, pattern: &str) -> Result<Vec<String>, TrainError> {
    let all = parameters(model);
    let found: Vec<String> = all
        .iter()
        .filter(|parameter| parameter.trained && matches(pattern, &parameter.path))
        .map(|parameter| parameter.path.clone())
        .collect();
    match found.is_empty() {
        false => Ok(found),
        true => Err(TrainError::NoSuchParameters {
            pattern: pattern.into(),
            known: all
                .into_iter()
                .map(|parameter| parameter.path)
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

/// Whether `path` matches `pattern`, in which `*` stands for any text, dots included.
pub fn matches(pattern: &str, path: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = path.strip_prefix(first) else {
        return false;
    };
    let Some(mut part) = parts.next() else {
        return rest.is_empty();
    };
    for next in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
        part = next;
    }
    rest.ends_with(part)
}

/// The module path during a visit.
#[derive(Debug, Default)]
pub(crate) struct PathStack(Vec<String>);

impl PathStack {
    pub(crate) fn enter(&mut self, name: &str) {
        self.0.push(name.into());
    }

    pub(crate) fn exit(&mut self) {
        self.0.pop();
    }

    pub(crate) fn path(&self) -> String {
        self.0.join(".")
    }
}

#[derive(Default)]
struct Lister {
    path: PathStack,
    found: Vec<Parameter>,
}

impl ModuleVisitor for Lister {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.found.push(Parameter {
            path: self.path.path(),
            shape: param.lazy_shape().to_vec(),
            trained: param.is_require_grad(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, path, expected) in [
            ("*", "a.b", true),
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("*.weight", "blocks.0.weight", true),
            ("*.weight", "blocks.0.bias", false),
            ("enc*.weight", "encoder.1.weight", true),
            ("a*b*c", "a--b--b--c", true),
            ("a*b*c", "a--c--b", false),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} on {path}");
        }
    }

    #[test]
    fn embeddings_and_heads_are_not_hidden() {
        let parameter = |path: &str, shape: &[usize]| Parameter {
            path: path.into(),
            shape: shape.into(),
            trained: true,
        };
        assert!(parameter("blocks.0.mlp.up.weight", &[4, 8]).is_hidden_matrix());
        assert!(!parameter("token_embedding.weight", &[4, 8]).is_hidden_matrix());
        assert!(!parameter("lm_head.weight", &[4, 8]).is_hidden_matrix());
        assert!(!parameter("blocks.0.norm.gamma", &[4]).is_hidden_matrix());
    }
}
