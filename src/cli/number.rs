//! Numbers as values of flags.

/// The longest time that a flag may give.
const DAY: f64 = 24.0 * 3600.0;

/// Seconds of a time limit or a measurement.
///
/// # Errors
/// The text is not a number above 0, or more than a day.
pub fn seconds(text: &str) -> Result<f64, String> {
    between(0.001, DAY)(text)
}

/// Parses numbers from `least` to `most`, both included.
pub fn between(least: f64, most: f64) -> impl Fn(&str) -> Result<f64, String> + Clone + Send + Sync {
    move |text| {
        // This also rejects NaN.
        let number = text.trim().parse().ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| format!("expected a number from {least} to {most}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_finite_and_above_0() {
        assert_eq!(seconds("0.5"), Ok(0.5));
        for text in ["", "0", "-1", "nan", "inf", "1e9", "ten"] {
            assert_eq!(seconds(text), Err("expected a number from 0.001 to 86400".into()), "{text}");
        }
        assert_eq!(between(-1.0, 1.0)("-1"), Ok(-1.0));
    }
}
