use std::fmt;

/// The settings a figure depends on, in one line: `readback|judge=glyph-classifier|n=1000|seed=7`.
///
/// Two figures may be compared when their signatures are equal (the idea of sacreBLEU, Post 2018,
/// arXiv 1804.08771). Settings stand in the order they were given; `|`, `=`, `%` and control
/// characters within them are percent-encoded, so that a signature has one reading.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Signature(String);

impl Signature {
    /// The signature of a metric without settings.
    pub fn new(metric: &str) -> Self {
        Self(encode(metric))
    }

    /// Adds a setting.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl fmt::Display) -> Self {
        let setting = format!("|{}={}", encode(key), encode(&value.to_string()));
        self.0.push_str(&setting);
        self
    }

    /// The line.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn encode(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' | '=' | '%' | '\0'..='\x1f' | '\x7f' => {
                line.push_str(&format!("%{:02X}", c as u32))
            }
            _ => line.push(c),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_in_order() {
        let signature = Signature::new("readback")
            .with("judge", "glyphs")
            .with("n", 1000)
            .with("seed", 7);
        assert_eq!(signature.as_str(), "readback|judge=glyphs|n=1000|seed=7");
    }

    #[test]
    fn separators_are_encoded() {
        let signature = Signature::new("m").with("a|b", "c=d%\n");
        assert_eq!(signature.to_string(), "m|a%7Cb=c%3Dd%25%0A");
    }
}
