//! Command lines, word by word.

use super::WordChange;

/// The words that are not in both command lines. A word of the form `name=value` is paired with the one of the
/// same name. Nothing at all when only order or spaces differ.
pub fn compare(a: &str, b: &str) -> Vec<WordChange> {
    let (mut first, mut second) = (split(a), split(b));
    first.retain(|word| match second.iter().position(|other| other == word) {
        Some(at) => {
            second.remove(at);
            false
        }
        None => true,
    });
    let mut changes = Vec::new();
    for word in first {
        let pair = second.iter().position(|other| word.contains('=') && name(other) == name(word));
        let other = pair.map(|at| second.remove(at).to_owned());
        changes.push(WordChange { a: Some(word.to_owned()), b: other });
    }
    changes.extend(second.into_iter().map(|word| WordChange { a: None, b: Some(word.to_owned()) }));
    changes
}

fn name(word: &str) -> &str {
    word.split('=').next().unwrap_or_default()
}

/// Splits at spaces outside double quotes, as the kernel does.
fn split(line: &str) -> Vec<&str> {
    let mut quoted = false;
    let boundary = |character: char| {
        quoted ^= character == '"';
        !quoted && character.is_ascii_whitespace()
    };
    line.split(boundary).filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_paired_by_name_and_quotes_hold() {
        let changes = compare(r#"quiet a="x y" b=1 panic=-1"#, r#"panic=-1 a="x z" debug b=1"#);
        let shown: Vec<_> = changes.iter().map(|change| (change.a.as_deref(), change.b.as_deref())).collect();
        assert_eq!(
            shown,
            [(Some("quiet"), None), (Some(r#"a="x y""#), Some(r#"a="x z""#)), (None, Some("debug"))]
        );
    }

    #[test]
    fn order_alone_changes_no_word() {
        assert!(compare("a b", "b  a").is_empty());
        assert_eq!(compare("a a", "a").len(), 1, "a word may be there twice");
    }
}
