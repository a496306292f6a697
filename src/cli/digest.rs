//! Models named by their digests or by prefixes of these.

use anyhow::bail;
use shipreid::client::Client;
use shipreid::wire::Model;

use super::Refusal;

/// Hexadecimal digits of a digest.
const DIGITS: usize = 64;
/// A shorter prefix could soon match another model.
const DIGITS_MIN: usize = 8;
/// Maximum number of models that a refusal lists.
const NAMED_MAX: usize = 5;

/// The full digest of the one model of the server that begins with `given`. A full digest is sent as it is, and so is
/// an empty one, which stands for the active model.
///
/// # Errors
/// The text is not the prefix of a digest, or matches no model or several (the error lists candidates); or the server
/// refuses.
pub async fn resolve(client: &Client, given: &str) -> anyhow::Result<String> {
    let digits = given.to_ascii_lowercase();
    if digits.is_empty() || (digits.len() == DIGITS && is_hexadecimal(&digits)) {
        return Ok(digits);
    }
    if !(DIGITS_MIN..DIGITS).contains(&digits.len()) || !is_hexadecimal(&digits) {
        bail!(Refusal(format!(
            "{given} is not a digest of a model: write all of its {DIGITS} hexadecimal digits, or at least the first \
             {DIGITS_MIN}; `shipreid model list` shows them"
        )));
    }
    Ok(choose(&client.list_models().await?, &digits)?)
}

fn choose(models: &[Model], digits: &str) -> Result<String, Refusal> {
    let found: Vec<&Model> = models.iter().filter(|model| model.digest.starts_with(digits)).collect();
    match found.as_slice() {
        [one] => Ok(one.digest.clone()),
        [] if models.is_empty() => {
            Err(Refusal(format!("no model begins with {digits}: the server has no models")))
        }
        [] => {
            let all: Vec<&Model> = models.iter().collect();
            Err(Refusal(format!("no model begins with {digits}: the server has {}", named(&all))))
        }
        several => Err(Refusal(format!(
            "{} models begin with {digits}, write more digits: {}",
            several.len(),
            named(several)
        ))),
    }
}

fn named(models: &[&Model]) -> String {
    let mut names: Vec<String> = models
        .iter()
        .take(NAMED_MAX)
        .map(
            |Model { digest, origin, .. }| {
                if origin.is_empty() { digest.clone() } else { format!("{digest} ({origin})") }
            },
        )
        .collect();
    if models.len() > NAMED_MAX {
        names.push(format!("{} more", models.len() - NAMED_MAX));
    }
    names.join(", ")
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_stands_for_one_model_or_is_refused_with_those_that_there_are() {
        let model = |digest: &str| Model {
            digest: format!("{digest:0<64}"),
            origin: "ships.pth".into(),
            ..Model::default()
        };
        let models = [model("0123456789"), model("01234567ab"), model("ffff0000")];
        assert_eq!(choose(&models, "ffff0000").ok(), Some(model("ffff0000").digest));
        assert_eq!(choose(&models, "0123456789").ok(), Some(model("0123456789").digest));
        let ambiguous = choose(&models, "01234567").expect_err("two models").to_string();
        for expected in ["2 models begin with 01234567", &models[0].digest, &models[1].digest, "ships.pth"] {
            assert!(ambiguous.contains(expected), "{ambiguous}");
        }
        assert!(!ambiguous.contains(&models[2].digest), "{ambiguous}");
        let unknown = choose(&models, "aaaaaaaa").expect_err("none").to_string();
        assert!(models.iter().all(|model| unknown.contains(&model.digest)), "{unknown}");
        let many = vec![model("ffff0000"); NAMED_MAX + 2];
        assert!(choose(&many, "ffff0000").expect_err("several").to_string().ends_with("2 more"));
        assert!(choose(&[], "ffff0000").is_err());
    }
}
