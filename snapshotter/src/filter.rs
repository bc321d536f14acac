//! containerd's filter expressions, as `List` takes them (containerd `filters` package, "Filter Syntax").
//!
//! A filter is a list of selectors that must all hold, separated by commas; a request carries filters of which
//! any may hold. A selector is a field path alone (the field is present) or a field path, an operator (`==`,
//! `!=`, `~=`) and a value. Path elements and values may be quoted.
//!
//! containerd depends on it: it finds the snapshot of a layer that it did not have to unpack by
//! `labels."containerd.io/snapshot.ref"==<chain id>,parent=="<name>"`.

use regex_lite::Regex;

/// Longest expression that is read, in bytes.
const MAX_LENGTH: usize = 16 * 1024;

/// An expression that cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("filter {filter:?}: byte {at}: expected {expected}")]
pub struct FilterError {
    filter: String,
    at: usize,
    expected: &'static str,
}

/// What filters are applied to.
pub trait Fields {
    /// The value of a field, if it is present. `path` is never empty.
    fn field(&self, path: &[String]) -> Option<String>;
}

/// Filters of one request: any of them has to hold.
#[derive(Debug)]
pub struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    Different(String),
    Matches(Box<Regex>),
}

impl Filters {
    /// Reads the filters of a request. None at all let everything pass.
    ///
    /// # Errors
    /// When one is not a filter.
    pub fn parse(filters: &[String]) -> Result<Self, FilterError> {
        filters
            .iter()
            .map(|filter| Parser { text: filter, at: 0 }.selectors())
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether something passes.
    #[must_use]
    pub fn pass(&self, fields: &impl Fields) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(|selector| selector.pass(fields)))
    }
}

impl Selector {
    fn pass(&self, fields: &impl Fields) -> bool {
        let value = fields.field(&self.path);
        match (&self.test, value) {
            (Test::Present, value) => value.is_some(),
            (Test::Equal(expected), Some(value)) => *expected == value,
            (Test::Different(unwanted), Some(value)) => *unwanted != value,
            // An absent field is different from any value.
            (Test::Different(_), None) => true,
            (Test::Matches(pattern), Some(value)) => pattern.is_match(&value),
            (Test::Equal(_) | Test::Matches(_), None) => false,
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn selectors(mut self) -> Result<Vec<Selector>, FilterError> {
        if self.text.len() > MAX_LENGTH {
            return Err(self.error("at most 16 KiB"));
        }
        if self.text.is_empty() {
            return Ok(Vec::new());
        }
        let mut selectors = vec![self.selector()?];
        while self.take(",") {
            selectors.push(self.selector()?);
        }
        if self.at == self.text.len() { Ok(selectors) } else { Err(self.error("a comma or the end")) }
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut path = vec![self.path_element()?];
        while self.take(".") {
            path.push(self.path_element()?);
        }
        let test = if self.take("==") {
            Test::Equal(self.value()?)
        } else if self.take("!=") {
            Test::Different(self.value()?)
        } else if self.take("~=") {
            let pattern = self.value()?;
            let pattern = Regex::new(&pattern).map_err(|_| self.error("a regular expression before it"))?;
            Test::Matches(Box::new(pattern))
        } else {
            Test::Present
        };
        Ok(Selector { path, test })
    }

    fn path_element(&mut self) -> Result<String, FilterError> {
        if self.rest().starts_with('"') {
            return self.quoted();
        }
        let name = |c: char| c.is_alphanumeric() || c == '_';
        let element: String = self.rest().chars().take_while(|&c| name(c)).collect();
        self.at += element.len();
        if element.is_empty() { Err(self.error("a field name")) } else { Ok(element) }
    }

    fn value(&mut self) -> Result<String, FilterError> {
        if self.rest().starts_with(['"', '/', '|']) {
            return self.quoted();
        }
        let value: String = self.rest().chars().take_while(|&c| c != ',' && !c.is_whitespace()).collect();
        self.at += value.len();
        Ok(value)
    }

    /// A quoted string, with a backslash before what would end it.
    fn quoted(&mut self) -> Result<String, FilterError> {
        let mut chars = self.rest().char_indices();
        let quote = chars.next().map(|(_, quote)| quote);
        let mut value = String::new();
        while let Some((at, c)) = chars.next() {
            if Some(c) == quote {
                self.at += at + c.len_utf8();
                return Ok(value);
            }
            if c != '\\' {
                value.push(c);
                continue;
            }
            match chars.next() {
                Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                Some((_, escaped)) if Some(escaped) == quote => value.push(escaped),
                // In a regular expression a backslash means something to the expression.
                Some((_, escaped)) if quote != Some('"') => value.extend(['\\', escaped]),
                Some((_, 'n')) => value.push('\n'),
                Some((_, 't')) => value.push('\t'),
                _ => {
                    self.at += at;
                    return Err(self.error("an escape sequence that is known"));
                }
            }
        }
        Err(self.error("a closing quote"))
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn error(&self, expected: &'static str) -> FilterError {
        FilterError { filter: self.text.chars().take(200).collect(), at: self.at, expected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sample;

    impl Fields for Sample {
        fn field(&self, path: &[String]) -> Option<String> {
            let value = match path[0].as_str() {
                "name" => "default/3/sha256:ab",
                "parent" => "",
                "labels" if path[1..].join(".") == "containerd.io/snapshot.ref" => "sha256:ab",
                _ => return None,
            };
            Some(value.into())
        }
    }

    fn pass(filters: &[&str]) -> Result<bool, FilterError> {
        let filters: Vec<String> = filters.iter().map(|&filter| filter.into()).collect();
        Ok(Filters::parse(&filters)?.pass(&Sample))
    }

    #[test]
    fn the_filter_by_which_containerd_finds_a_layer() {
        assert!(pass(&[r#"labels."containerd.io/snapshot.ref"==sha256:ab,parent=="""#]).unwrap());
        assert!(!pass(&[r#"labels."containerd.io/snapshot.ref"==sha256:ac,parent=="""#]).unwrap());
        assert!(!pass(&[r#"labels."containerd.io/snapshot.ref"==sha256:ab,parent=="x""#]).unwrap());
    }

    #[test]
    fn any_filter_and_all_of_its_selectors() {
        assert!(pass(&[]).unwrap());
        assert!(pass(&[""]).unwrap());
        assert!(pass(&["name==x", "name~=/^default\\/[0-9]+\\//"]).unwrap());
        assert!(!pass(&["name==x", "kind"]).unwrap());
        assert!(pass(&["kind!=active,name"]).unwrap());
        assert!(!pass(&[r#"labels.other"#]).unwrap());
    }

    #[test]
    fn what_is_not_a_filter_is_refused_where_it_goes_wrong() {
        for (filter, at) in
            [("==x", 0), ("name=x", 4), ("name==\"x", 6), ("a.==b", 2), ("name==x y", 7), ("name~=/(/", 9)]
        {
            let error = pass(&[filter]).unwrap_err();
            assert_eq!(error.at, at, "{filter}: {error}");
        }
        assert!(pass(&[&"a".repeat(MAX_LENGTH + 1)]).is_err());
    }
}
