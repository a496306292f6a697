//! Values as interpreted by yacs: first as YAML, then text is parsed as a Python literal.

use std::collections::BTreeMap;
use std::fmt;

use saphyr::{LoadableYamlNode as _, Scalar, Yaml};

use crate::message::excerpt;

/// Maximum nesting of sections; the authors have three.
const DEPTH_MAX: usize = 16;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Flag(bool),
    Number(f64),
    Text(String),
    List(Vec<Value>),
}

/// Formatted as in Python, with lists as tuples.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(true) => f.write_str("True"),
            Self::Flag(false) => f.write_str("False"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
            Self::List(values) => {
                let values: Vec<String> = values.iter().map(ToString::to_string).collect();
                write!(f, "({})", values.join(", "))
            }
        }
    }
}

/// The values of a YAML text by their full keys, sections joined by dots.
///
/// # Errors
/// One line with the problem and its position.
pub fn settings(text: &str) -> Result<BTreeMap<String, Value>, String> {
    let documents = Yaml::load_from_str(text).map_err(|cause| {
        let place = cause.marker();
        format!("line {}: {}", place.line(), cause.info())
    })?;
    let mut values = BTreeMap::new();
    for document in &documents {
        let Yaml::Mapping(_) = document else { return Err("the text has no sections".to_owned()) };
        collect(document, &mut Vec::new(), &mut values)?;
    }
    Ok(values)
}

fn collect(node: &Yaml, place: &mut Vec<String>, values: &mut BTreeMap<String, Value>) -> Result<(), String> {
    let Yaml::Mapping(entries) = node else {
        let key = place.join(".");
        let value = value(node, DEPTH_MAX).ok_or_else(|| format!("{} is no value", excerpt(&key)))?;
        values.insert(key, value);
        return Ok(());
    };
    if place.len() > DEPTH_MAX {
        return Err(format!("{} is nested too deeply", excerpt(&place.join("."))));
    }
    for (name, node) in entries {
        let name =
            name.as_str().ok_or_else(|| format!("a key of {} is no text", excerpt(&place.join("."))))?;
        place.push(name.to_owned());
        collect(node, place, values)?;
        place.pop();
    }
    Ok(())
}

fn value(node: &Yaml, depth_max: usize) -> Option<Value> {
    Some(match node {
        Yaml::Value(Scalar::Boolean(flag)) => Value::Flag(*flag),
        Yaml::Value(Scalar::Integer(number)) => Value::Number(*number as f64),
        Yaml::Value(Scalar::FloatingPoint(number)) => Value::Number(number.into_inner()),
        Yaml::Value(Scalar::String(text)) => literal(text),
        Yaml::Value(Scalar::Null) => Value::Text(String::new()),
        Yaml::Sequence(nodes) if depth_max > 0 => {
            Value::List(nodes.iter().map(|node| value(node, depth_max - 1)).collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

/// Parses a text as a Python literal: booleans, numbers, quoted text, tuples and lists; anything
/// else stays text.
pub fn literal(text: &str) -> Value {
    let mut rest = text.trim();
    match parse(&mut rest, DEPTH_MAX) {
        Some(value) if rest.trim().is_empty() => value,
        _ => Value::Text(text.to_owned()),
    }
}

/// Parses a literal at the start of `rest`.
fn parse(rest: &mut &str, depth_max: usize) -> Option<Value> {
    *rest = rest.trim_start();
    match rest.chars().next()? {
        quote @ ('\'' | '"') => {
            let (text, after) = rest[1..].split_once(quote)?;
            *rest = after;
            // Escapes are not interpreted.
            (!text.contains('\\')).then(|| Value::Text(text.to_owned()))
        }
        open @ ('(' | '[') if depth_max > 0 => {
            *rest = &rest[1..];
            parse_list(rest, open, depth_max - 1)
        }
        _ => {
            let end = rest.find([',', ')', ']']).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            *rest = after;
            match word.trim() {
                "True" => Some(Value::Flag(true)),
                "False" => Some(Value::Flag(false)),
                number => {
                    // Rust parses "inf" and "nan", which are names in Python.
                    let is_number =
                        number.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first));
                    number.parse().ok().filter(|_| is_number).map(Value::Number)
                }
            }
        }
    }
}

/// The rest of a list. Parentheses around one value without a comma are not a tuple.
fn parse_list(rest: &mut &str, open: char, depth_max: usize) -> Option<Value> {
    let close = if open == '(' { ')' } else { ']' };
    let (mut values, mut commas) = (Vec::new(), 0);
    loop {
        *rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix(close) {
            *rest = after;
            let is_plain = open == '(' && commas == 0 && values.len() == 1;
            return if is_plain { values.pop() } else { Some(Value::List(values)) };
        }
        if values.len() > commas {
            *rest = rest.strip_prefix(',')?;
            commas += 1;
        } else {
            values.push(parse(rest, depth_max)?);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_those_of_python() {
        let text = |text: &str| Value::Text(text.to_owned());
        let list = |values: &[Value]| Value::List(values.to_vec());
        for (written, expected) in [
            ("('hoss')", text("hoss")),
            ("('hoss',)", list(&[text("hoss")])),
            ("(60, 120)", list(&[Value::Number(60.0), Value::Number(120.0)])),
            ("[[1], ()]", list(&[list(&[Value::Number(1.0)]), list(&[])])),
            ("5e-4", Value::Number(5e-4)),
            (" -3 ", Value::Number(-3.0)),
            ("True", Value::Flag(true)),
            ("(False)", Value::Flag(false)),
            ("\"0\"", text("0")),
            ("true", text("true")),
            ("inf", text("inf")),
            ("./logs/hoss", text("./logs/hoss")),
            ("(60, 120", text("(60, 120")),
            ("'a' b", text("'a' b")),
            ("", text("")),
        ] {
            assert_eq!(literal(written), expected, "{written}");
        }
    }

    #[test]
    fn no_nesting_is_too_deep() {
        let deep = "(".repeat(100_000);
        assert_eq!(literal(&deep), Value::Text(deep.clone()));
        let sections: String = (0..100).map(|depth| format!("{}A:\n", " ".repeat(depth))).collect();
        assert!(settings(&sections).expect_err("deep").contains("nested too deeply"));
        let list = format!("A: {}{}", "[".repeat(100), "]".repeat(100));
        assert!(settings(&list).is_err());
    }

    #[test]
    fn keys_are_joined_and_quoted_numbers_are_numbers() {
        let found = settings("A:\n  B: '0.5'\n  C: {D: on}\nE: ''\n").expect("values");
        let expected =
            [("A.B", Value::Number(0.5)), ("A.C.D", literal("on")), ("E", Value::Text(String::new()))];
        assert_eq!(found, expected.map(|(key, value)| (key.to_owned(), value)).into());
    }
}
