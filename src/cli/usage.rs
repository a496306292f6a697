//! What is wrong with the arguments of a command, in one line like every other error.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fmt::Write;
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::{NAME, command};

/// The arguments of this process are wrong as `told`: what, what was probably meant, and where help is.
pub fn line(told: &clap::Error) -> String {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let named = path(&command(), &arguments);
    let suggestion = match suggestion(told) {
        None if told.kind() == ErrorKind::UnknownArgument && named == NAME => {
            ": flags follow the command".to_owned()
        }
        suggestion => suggestion.unwrap_or_default(),
    };
    one_line(&format!("{}{suggestion} (see {named} --help)", fault(told, &arguments)))
}

/// The words that lead to the command that was meant, as `shipreid gallery list`.
fn path(command: &Command, arguments: &[OsString]) -> String {
    let (mut path, mut found) = (NAME.to_owned(), command);
    for argument in arguments {
        let Some(deeper) = found.find_subcommand(argument) else { break };
        let _ = write!(path, " {}", deeper.get_name());
        found = deeper;
    }
    path
}

fn fault(told: &clap::Error, arguments: &[OsString]) -> String {
    let of = |kind| told.get(kind).map(ToString::to_string).unwrap_or_default();
    let (argument, value) = (of(ContextKind::InvalidArg), of(ContextKind::InvalidValue));
    match told.kind() {
        ErrorKind::UnknownArgument if is_negative_number(&argument) => {
            format!("unexpected argument '{argument}': a negative value is written as --flag={argument}")
        }
        ErrorKind::UnknownArgument if argument.starts_with('-') => format!("unknown flag '{argument}'"),
        ErrorKind::UnknownArgument => format!("unexpected argument '{argument}'"),
        ErrorKind::InvalidSubcommand => {
            format!("unknown command '{}'", of(ContextKind::InvalidSubcommand))
        }
        ErrorKind::InvalidValue if value.is_empty() => format!("'{argument}' needs a value"),
        ErrorKind::InvalidValue => {
            format!("invalid value '{value}' for '{argument}': expected {}", choices(told))
        }
        ErrorKind::ValueValidation => {
            format!("invalid value '{value}' for '{argument}': {}", expectation(told))
        }
        ErrorKind::MissingRequiredArgument => format!("missing {argument}"),
        ErrorKind::ArgumentConflict if of(ContextKind::PriorArg) == argument => {
            format!("'{argument}' is given more than once")
        }
        ErrorKind::ArgumentConflict => {
            format!("'{argument}' cannot be combined with '{}'", of(ContextKind::PriorArg))
        }
        ErrorKind::InvalidUtf8 => {
            let strange = arguments.iter().find(|argument| argument.to_str().is_none());
            format!("the argument {:?} is not UTF-8", strange.cloned().unwrap_or_default())
        }
        _ => rendered(told),
    }
}

/// What was probably meant.
fn suggestion(told: &clap::Error) -> Option<String> {
    let similar = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue];
    match similar.iter().find_map(|kind| told.get(*kind))? {
        ContextValue::Strings(several) if !several.is_empty() => {
            // clap lists the most similar one last.
            let best_first: Vec<&str> = several.iter().rev().map(String::as_str).collect();
            Some(format!(", did you mean '{}'?", best_first.join("' or '")))
        }
        ContextValue::String(one) => Some(format!(", did you mean '{one}'?")),
        _ => None,
    }
}

/// The possible values of an argument.
fn choices(told: &clap::Error) -> String {
    match told.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) => match values.as_slice() {
            [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
            few => few.join(", "),
        },
        _ => "another value".to_owned(),
    }
}

/// What a value should have been.
fn expectation(told: &clap::Error) -> String {
    let Some(cause) = told.source() else { return "expected another value".to_owned() };
    if let Some(cause) = cause.downcast_ref::<ParseIntError>() {
        return match cause.kind() {
            IntErrorKind::PosOverflow => "the number is too large",
            IntErrorKind::NegOverflow => "the number is too small",
            _ => "expected a whole number, 0 or above",
        }
        .to_owned();
    }
    if cause.is::<ParseFloatError>() { "expected a number".to_owned() } else { cause.to_string() }
}

/// The first lines of clap's own text, up to its usage.
fn rendered(told: &clap::Error) -> String {
    let text = told.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    first.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_negative_number(argument: &str) -> bool {
    argument.starts_with('-') && argument.parse::<f64>().is_ok()
}

/// Control characters, which arguments may contain, are escaped.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_was_meant_is_named() {
        for (typed, expected) in [
            ("", "shipreid"),
            ("gallery lst", "shipreid gallery"),
            ("gallery list --jsn", "shipreid gallery list"),
            ("embed list", "shipreid embed"),
            ("--version gallery", "shipreid"),
        ] {
            let arguments: Vec<OsString> = typed.split_whitespace().map(OsString::from).collect();
            assert_eq!(path(&command(), &arguments), expected, "{typed}");
        }
    }

    #[test]
    fn control_characters_make_no_second_line() {
        assert_eq!(one_line("unknown flag '--a\nb\u{1b}[31m'"), "unknown flag '--a\\nb\\u{1b}[31m'");
        assert_eq!(one_line("Köhlbrand"), "Köhlbrand");
    }
}
