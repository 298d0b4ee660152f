//! The CustomResourceDefinition of InterceptorConfig says what the loader reads, and nothing else.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

/// The schema of `spec`, as the plain manifests have it.
fn schema() -> Value {
    let manifests = include_str!("../../../../deploy/interceptor.yaml");
    let definition = manifests
        .split("\n---\n")
        .find(|text| text.contains("\nkind: CustomResourceDefinition\n"))
        .expect("there is one");
    let definition: Value = serde_saphyr::from_str(definition).expect("YAML");
    let version = &definition["spec"]["versions"][0];
    assert_eq!(
        (&definition["spec"]["group"], &definition["spec"]["names"]["kind"], &version["name"]),
        (&"egress.interceptor.io".into(), &"InterceptorConfig".into(), &"v1alpha1".into())
    );
    version["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
}

const PROXIES: &str = "egressProxy";

/// What is no plain value: its names are compared.
const LISTS: [&str; 3] = [PROXIES, "selector", "bypassCIDRs"];

/// The names of all fields in a schema.
fn names(schema: &Value, out: &mut BTreeSet<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        out.insert(name.clone());
        names(field, out);
        names(&field["items"], out);
    }
}

/// Each leaf of a schema, with values that it allows, and some that it does not.
fn leaves(schema: &Value, path: &str, out: &mut Vec<(String, Vec<String>, Vec<String>)>) {
    for (name, field) in schema["properties"].as_object().expect("fields") {
        // Lists of what depends on each other: its names are compared.
        if LISTS.contains(&name.as_str()) {
            continue;
        }
        let path = format!("{path}{name}");
        let bounds = || ["minimum", "maximum"].map(|bound| field[bound].as_i64().expect("a bound"));
        let words = |values: &[&str]| values.iter().map(ToString::to_string).collect();
        match field["type"].as_str().expect("a type") {
            "object" => leaves(field, &format!("{path}."), out),
            "boolean" => out.push((path, words(&["true", "false"]), words(&["1"]))),
            "integer" => {
                let [least, most] = bounds();
                let (good, bad) = ([least, most], [least - 1, most + 1]);
                let texts = |all: [i64; 2]| all.iter().map(ToString::to_string).collect();
                out.push((path, texts(good), texts(bad)));
            }
            "string" => {
                let values = field["enum"].as_array().expect("an enumeration");
                let good = values.iter().map(|one| one.as_str().expect("a word").to_owned());
                out.push((path, good.collect(), words(&["other"])));
            }
            other => panic!("{path}: {other}"),
        }
    }
}

fn config(path: &str, value: &str) -> String {
    let spec = match path.split_once('.') {
        Some((outer, inner)) => format!("{outer}: {{{inner}: {value}}}"),
        None => format!("{path}: {value}"),
    };
    format!(
        "apiVersion: egress.interceptor.io/v1alpha1\nkind: InterceptorConfig\n\
         metadata: {{name: default}}\nspec: {{{spec}}}\n"
    )
}

#[test]
fn what_the_definition_allows_the_loader_reads() {
    let mut all = Vec::new();
    leaves(&schema(), "", &mut all);
    assert!(all.len() >= 10, "{all:?}");
    for (path, good, bad) in &all {
        for value in good {
            let loaded = load_text(&config(path, value), Enforcement::Strict);
            let loaded = loaded.unwrap_or_else(|errors| panic!("{path}: {value}: {errors:?}"));
            assert_eq!(texts(&loaded.warnings), [""; 0], "{path}: {value}");
        }
        for value in bad {
            let errors = load_text(&config(path, value), Enforcement::Strict);
            let errors = errors.err().unwrap_or_else(|| panic!("{path}: {value} is accepted"));
            assert!(errors[0].contains(&format!("spec.{path}")), "{path}: {errors:?}");
            // All the words that the loader knows are said where one is unknown.
            if let Some((_, words)) = errors[0].split_once("use one of ") {
                assert_eq!(words, good.join(", "), "{path}");
            }
        }
    }
}

/// The other way round, by the loader's source: its fields are names in it.
#[test]
fn what_the_loader_reads_the_definition_has() {
    let mut all = Vec::new();
    leaves(&schema(), "", &mut all);
    let defined: BTreeSet<_> = all.iter().map(|(path, ..)| path.as_str()).collect();
    let between = |text: &'static str, from: &str, to: &str| {
        let (_, rest) = text.split_once(from).expect("where it begins");
        rest.split_once(to).expect("where it ends").0
    };
    let spec = between(include_str!("../interceptor_config.rs"), "fn read(", "let later");
    let limits = between(include_str!("../limits.rs"), "let read = Self {", "};");
    let named = |text: &'static str, calls: &[&str]| -> Vec<&'static str> {
        let lines = text.lines();
        let of = |line: &'static str| {
            let (_, rest) = calls.iter().find_map(|call| line.split_once(*call))?;
            rest.split('"').next()
        };
        lines.filter_map(of).collect()
    };
    let calls = ["spec.text(\"", "spec.boolean(\"", "spec.int(\"", "spec.take(\"", "spec.has(\""];
    let spec = named(spec, &calls);
    let limits = named(limits, &["number(\""]);
    assert!(LISTS.iter().all(|name| spec.contains(name)), "{spec:?}");
    assert!(spec.contains(&"limits") && limits.len() >= 5, "{spec:?} {limits:?}");
    let limits: Vec<_> = limits.iter().map(|name| format!("limits.{name}")).collect();
    let read: BTreeSet<_> =
        spec.into_iter().filter(|name| *name != "limits" && !LISTS.contains(name)).collect();
    let read: BTreeSet<_> = read.into_iter().chain(limits.iter().map(String::as_str)).collect();
    assert_eq!(read, defined);

    let source = include_str!("../egress_proxy/mod.rs");
    let calls = [".list(\"", ".text(\"", ".texts(\"", ".boolean(\"", ".take(\"", "path(\""];
    let read: BTreeSet<String> = source
        .lines()
        .flat_map(|line| calls.iter().flat_map(move |call| line.split(call).skip(1)))
        .filter_map(|rest| rest.split('"').next().map(str::to_owned))
        .collect();
    let mut defined = BTreeSet::new();
    names(&schema()["properties"][PROXIES], &mut defined);
    assert_eq!(read, defined);
}
