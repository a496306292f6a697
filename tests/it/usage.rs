//! Wrong arguments: one line that names the argument and help, and exit code 2, as for every other refusal.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Output;

use crate::program::{run, shipreid};

/// The one line with which a command is refused.
fn refusal(output: &Output) -> String {
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{line}");
    assert!(line.starts_with("shipreid: ") && line.lines().count() == 1, "{line}");
    assert_eq!(output.stdout, b"", "{line}");
    line
}

#[test]
fn wrong_arguments_are_one_line_that_names_them_and_where_help_is() {
    for (arguments, says, helps) in [
        (&["embark"][..], "unknown command 'embark', did you mean 'embed'?", "shipreid"),
        (&["gallery", "lst"], "unknown command 'lst', did you mean 'list'", "shipreid gallery"),
        (
            &["embed", "--pixel-siz", "1", "x.png"],
            "unknown flag '--pixel-siz', did you mean '--pixel-size'?",
            "shipreid embed",
        ),
        (
            &["--endpoint", "x", "model", "list"],
            "unknown flag '--endpoint': flags follow the command",
            "shipreid",
        ),
        (&["gallery", "list", "harbour"], "unexpected argument 'harbour'", "shipreid gallery list"),
        (&["embed", "x.png", "--pixel-size"], "'--pixel-size <X[,Y]>' needs a value", "shipreid embed"),
        (
            &["embed", "x.png", "--pixel-size", "x"],
            "'x' for '--pixel-size <X[,Y]>': expected metres",
            "shipreid embed",
        ),
        (
            &["embed", "x.png", "--timeout", "0"],
            "'0' for '--timeout <SECONDS>': expected a number from",
            "shipreid embed",
        ),
        (&["embed", "x.png", "--timeout", "nan"], "'nan' for '--timeout <SECONDS>'", "shipreid embed"),
        (&["embed", "x.png", "--batch", "0"], "0 is not in 1..=65535", "shipreid embed"),
        (
            &["embed", "x.png", "--batch", "ten"],
            "'ten' for '--batch <BATCH>': expected a whole number",
            "shipreid embed",
        ),
        (&["embed", "x.png", "--batch", "-1"], "a negative value is written as --flag=-1", "shipreid embed"),
        (
            &["embed", "x.png", "--json", "--npy", "f"],
            "'--json' cannot be combined with '--npy <FILE>'",
            "shipreid embed",
        ),
        (
            &["embed", "x.png", "--model", "a", "--model", "b"],
            "'--model <DIGEST>' is given more than once",
            "shipreid embed",
        ),
        (&["embed"], "missing <FILE>...", "shipreid embed"),
        (&["match", "x.png"], "missing --gallery <NAME>", "shipreid match"),
        (
            &["match", "x.png", "--gallery", "g", "--ranking", "cos"],
            "expected cosine or fused, did you mean 'cosine'?",
            "shipreid match",
        ),
        (
            &["match", "x.png", "--gallery", "g", "--min-similarity", "2"],
            "expected a number from -1 to 1",
            "shipreid match",
        ),
        (
            &["jobs", "list", "--state", "done"],
            "'done' for '--state <STATE>': expected queued, running",
            "shipreid jobs list",
        ),
        (
            &["train", "--local", "x.toml", "--device", "tpu"],
            "'tpu' for '--device <DEVICE>': expected cpu or cuda:N",
            "shipreid train",
        ),
        (&["key", "new", "--role", "embed", "--days", "0"], "0 is not in 1..=65535", "shipreid key new"),
        (
            &["key", "new", "--role", "a\nb"],
            "'a\\nb' for '--role <ROLE>': expected embed",
            "shipreid key new",
        ),
        (
            &["jobs", "delete", "job-1", "--yes", "--yes"],
            "'--yes' is given more than once",
            "shipreid jobs delete",
        ),
    ] {
        let line = refusal(&run(arguments));
        assert!(line.contains(says), "{arguments:?}: {line}");
        assert!(line.trim_end().ends_with(&format!("(see {helps} --help)")), "{arguments:?}: {line}");
    }
    let help = run(&["gallery"]);
    assert_eq!(help.status.code(), Some(2), "without a command there is nothing to do");
    assert!(String::from_utf8_lossy(&help.stderr).contains("list-vessels"), "help lists the commands");
}

#[test]
fn arguments_that_are_not_text_are_refused_by_their_bytes() {
    let strange = OsStr::from_bytes(b"a\xff");
    let line = refusal(&shipreid().args(["gallery", "create"]).arg(strange).output().unwrap());
    assert!(line.contains(r#"the argument "a\xFF" is not UTF-8"#), "{line}");
    for variable in ["SHIPREID_ENDPOINT", "SHIPREID_API_KEY"] {
        let output = shipreid().args(["gallery", "list"]).env(variable, strange).output().unwrap();
        let line = refusal(&output);
        assert!(line.contains(&format!("{variable} is not UTF-8")) && !line.contains("xFF"), "{line}");
    }
}

#[test]
fn endpoints_with_more_than_an_address_are_refused() {
    for endpoint in
        ["garbage here", "127.0.0.1:1/path", "http://127.0.0.1:1/?a=b", "http://me:secret@127.0.0.1:1"]
    {
        let output =
            shipreid().args(["gallery", "list"]).env("SHIPREID_ENDPOINT", endpoint).output().unwrap();
        let line = refusal(&output);
        assert!(line.contains("is not a server address: write host:port"), "{line}");
    }
}

#[test]
fn inputs_that_cannot_be_used_are_refused_before_a_server_is_called() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().to_str().unwrap();
    for (arguments, says) in [
        (&["embed", "/nowhere/x_SAR.png"][..], "cannot read /nowhere/x_SAR.png: No such file"),
        (&["embed", "/nowhere/x.png"], "add --modality optical or sar"),
        (&["embed", empty], "contains no images"),
        (&["embed", "-", "-", "--modality", "sar"], "standard input is given twice"),
        (&["gallery", "enroll", "g", "-", "--modality", "sar"], "standard input cannot be enrolled"),
        (&["match", "-", "--modality", "sar", "--gallery", "g", "--manifest", "-"], "cannot both be read"),
        (&["gallery", "enroll", "g", "a/x_SAR.png", "b/x_SAR.png"], "two files have the entry id x_SAR.png"),
        (&["gallery", "enroll", "g", "x_SAR.png", "--manifest", "/nowhere"], "cannot read /nowhere"),
        (&["gallery", "import", "g", "/nowhere"], "cannot read /nowhere"),
        (&["model", "import", "/nowhere", "--endpoint", "127.0.0.1:1"], "cannot read /nowhere"),
        (&["eval", "--data", "/nowhere"], "/nowhere/query: No such file"),
        (&["key", "new", "--role", "embed", "--tenant", "A b"], "the tenant \"A b\" must be"),
    ] {
        let line = refusal(&run(arguments));
        assert!(line.contains(says), "{arguments:?}: {line}");
    }
}

#[test]
fn pictures_of_an_earlier_demo_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("training.html");
    std::fs::write(&report, "ours").unwrap();
    let line = refusal(&run(&["demo", "--out", folder.path().to_str().unwrap(), "--ships", "8"]));
    assert!(line.contains("training.html already exists") && line.contains("--force"), "{line}");
    assert_eq!(std::fs::read_to_string(report).unwrap(), "ours");
    assert!(!folder.path().join("synthetic_ships.png").exists(), "nothing was drawn");
}
