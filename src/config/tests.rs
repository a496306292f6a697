use std::path::Path;

use toml::{Table, Value};

use super::*;

fn load(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("server.toml");
    std::fs::write(&path, file).expect("a file");
    Config::load(&Sources {
        file: Some(path),
        environment: environment.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        flags: flags.iter().map(|flag| (*flag).into()).collect(),
    })
}

#[test]
fn later_sources_win() {
    let file = "[encoder]\nbatch_max = 4\nworkers = 3\nprecision = \"bf16\"";
    let config =
        load(file, &[("SHIPREID__ENCODER__BATCH_MAX", "16"), ("HOME", "x")], &["encoder.batch_max=32"])
            .expect("valid");
    assert_eq!(config.encoder.batch_max, 32);
    assert_eq!(config.encoder.workers, 3);
    assert_eq!(config.encoder.precision, Precision::Bf16);
}

#[test]
fn a_list_is_written_with_colons_outside_of_files() {
    let roots = |file: &str, flags: &[&str]| load(file, &[], flags).expect("valid").training.data_roots;
    assert_eq!(roots("[training]\ndata_roots = [\"/a\", \"/b\"]", &[]), [Path::new("/a"), Path::new("/b")]);
    assert_eq!(roots("", &["training.data_roots=/a:/b c"]), [Path::new("/a"), Path::new("/b c")]);
    assert!(roots("", &["training.data_roots="]).is_empty());
}

#[test]
fn an_unknown_key_names_the_nearest_valid_one() {
    for (file, environment, key, nearest) in [
        ("[encoder]\nbatch_maximum = 4", None, "encoder.batch_maximum", "encoder.batch_max"),
        ("[encodr]\nbatch_max = 4", None, "encodr", "encoder"),
        ("", Some("SHIPREID__SERVER__LISTN"), "server.listn", "server.listen"),
    ] {
        let environment: Vec<_> = environment.map(|name| (name, "1")).into_iter().collect();
        match load(file, &environment, &[]) {
            Err(ConfigError::UnknownKey { key: found, nearest: Some(hint), .. }) => {
                assert_eq!((found.as_str(), hint.as_str()), (key, nearest));
            }
            other => panic!("{key}: {other:?}"),
        }
    }
}

#[test]
fn a_wrong_value_names_its_key_and_source() {
    for (file, flags, part) in [
        ("[encoder]\nbatch_max = \"many\"", &[][..], "encoder.batch_max"),
        ("", &["encoder.batch_max=many"][..], "encoder.batch_max"),
        ("[encoder]\nprecision = \"f16\"", &[][..], "encoder.precision"),
        ("[server]\nlisten = \"nowhere\"", &[][..], "server.listen"),
        ("", &["encoder.batch_max"][..], "section.key=value"),
        ("[encoder]\nprecision = \"a\\nb\"", &[][..], "encoder.precision"),
        ("[encoder]\n\"a\\nb\" = 1", &[][..], "unknown key encoder.a b"),
    ] {
        let message = load(file, &[], flags).expect_err("a wrong value").to_string();
        assert!(message.contains(part) && !message.contains('\n'), "{message}");
    }
}

#[test]
fn every_violation_is_reported_at_once() {
    let flags = ["encoder.batch_max=0", "limits.calls_max=0", "encoder.device=tpu"];
    match load("", &[], &flags) {
        Err(ConfigError::Invalid(violations)) => assert_eq!(violations.len(), 3, "{violations:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn beyond_loopback_it_is_tls_or_words() {
    let listen = "server.listen=0.0.0.0:50051";
    match load("", &[], &[listen]) {
        Err(ConfigError::Invalid(violations)) => assert_eq!(violations.len(), 1, "{violations:?}"),
        other => panic!("{other:?}"),
    }
    load("", &[], &[listen, "server.plaintext=everywhere"]).expect("said in words");
    load("", &[], &[listen, "tls.certificate=a.pem", "tls.key=a.key"]).expect("encrypted");
    load("", &[], &["server.listen=[::1]:50051"]).expect("loopback");
}

#[test]
fn the_shipped_file_is_the_defaults_and_comments_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/server.toml");
    let config = Config::load(&Sources { file: Some(path.clone()), ..Sources::default() }).expect("valid");
    assert_eq!(config, Config::default());
    let text = std::fs::read_to_string(path).expect("valid");
    let lines: Vec<&str> = text.lines().collect();
    let present: Vec<&str> = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| line.contains(" = ") && !line.starts_with('#'))
        .map(|(number, line)| {
            assert!(lines[number - 1].starts_with("# "), "no comment above {line}");
            line.split(" = ").next().expect("valid")
        })
        .collect();
    let wanted = Settings::new().into_table();
    let wanted: usize = wanted.values().filter_map(Value::as_table).map(Table::len).sum();
    assert_eq!(present.len(), wanted, "every key once");
}

#[test]
fn networks_are_written_with_commas_outside_of_files() {
    let proxies = |file: &str, flags: &[&str]| {
        let config = load(file, &[], flags)?;
        Ok::<_, ConfigError>(
            config.server.trusted_proxies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        )
    };
    let file = "[server]\ntrusted_proxies = [\"10.0.0.0/8\"]";
    assert_eq!(proxies(file, &[]).expect("valid"), ["10.0.0.0/8"]);
    let both = proxies("", &["server.trusted_proxies=10.0.0.7,::1"]).expect("valid");
    assert_eq!(both, ["10.0.0.7/32", "::1/128"]);
    let cause = proxies("", &["server.trusted_proxies=proxy"]).expect_err("no address").to_string();
    assert!(cause.contains("server.trusted_proxies") && cause.contains("proxy"), "{cause}");
}

#[test]
fn a_server_that_holds_some_galleries_shares_them_with_others() {
    let galleries = |flags: &[&str]| {
        let config = load("", &[], flags).map_err(|cause| cause.to_string())?;
        Ok::<_, String>(config.matching.galleries.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let shared = "store.url=postgres://db/shipreid";
    let some = "matching.galleries=harbour*,default/strait";
    assert_eq!(galleries(&[shared, some]).expect("valid"), ["harbour*", "default/strait"]);
    assert_eq!(galleries(&[shared]).expect("valid"), [""; 0]);
    let of_tenant = "matching.galleries=acme/*";
    assert_eq!(galleries(&[shared, "auth.keys_file=keys.toml", of_tenant]).expect("valid"), ["acme/*"]);
    for (flags, part) in [
        (vec![some], "matching.galleries needs store.url: "),
        (vec![shared, of_tenant], "matching.galleries names the tenant of acme/*, "),
        (vec![shared, "matching.galleries=Harbour"], "\"Harbour\" is no pattern of galleries: "),
    ] {
        let message = galleries(&flags).expect_err("invalid");
        assert!(message.contains(part) && !message.contains('\n'), "{message}");
    }
}
