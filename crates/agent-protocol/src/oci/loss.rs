//! Finds what a conversion dropped, by comparing the JSON forms from before and after it.

use serde_json::Value;

/// The first field of `before` that `after` lacks or has with another value: its JSON pointer and its value.
///
/// A value that means "not set" (null, false, zero, empty) may be absent afterwards.
pub fn find(before: &Value, after: &Value) -> Option<(String, String)> {
    let mut path = String::new();
    search(before, after, &mut path).map(|value| (path, value))
}

fn search(before: &Value, after: &Value, path: &mut String) -> Option<String> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            before.iter().find_map(|(key, value)| descend(key, value, after.get(key), path))
        }
        (Value::Array(before), Value::Array(after)) if is_set_of_names(path) => {
            // Capabilities are sets: their order means nothing and is not kept.
            before.iter().find(|value| !after.contains(value)).map(shown)
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            let pairs = before.iter().zip(after).enumerate();
            pairs
                .into_iter()
                .find_map(|(at, (value, other))| descend(&at.to_string(), value, Some(other), path))
        }
        _ => (before != after && !(is_unset(before) && is_unset(after))).then(|| shown(before)),
    }
}

fn descend(key: &str, before: &Value, after: Option<&Value>, path: &mut String) -> Option<String> {
    let length = path.len();
    path.push('/');
    path.push_str(key);
    let found = search(before, after.unwrap_or(&Value::Null), path);
    if found.is_none() {
        path.truncate(length);
    }
    found
}

fn is_set_of_names(path: &str) -> bool {
    path.contains("capabilities/")
}

fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_unset),
    }
}

fn shown(value: &Value) -> String {
    value.to_string().chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unset_values_may_go() {
        let before = json!({"a": 0, "b": {"c": [], "d": null}, "e": false, "f": "", "g": 1});
        assert_eq!(find(&before, &json!({"g": 1})), None);
        assert_eq!(
            find(&json!({"capabilities": {"x": ["B", "A"]}}), &json!({"capabilities": {"x": ["A", "B"]}})),
            None
        );
    }

    #[test]
    fn the_lost_field_is_named() {
        let before = json!({"linux": {"mounts": [{"a": 1}, {"b": 2}]}});
        let after = json!({"linux": {"mounts": [{"a": 1}, {"b": 3}]}});
        assert_eq!(find(&before, &after), Some(("/linux/mounts/1/b".to_owned(), "2".to_owned())));
        assert_eq!(find(&json!({"x": [1]}), &json!({})), Some(("/x".to_owned(), "[1]".to_owned())));
        let names = json!({"capabilities": {"x": ["A", "B"]}});
        assert!(find(&names, &json!({"capabilities": {"x": ["A"]}})).is_some());
    }
}
