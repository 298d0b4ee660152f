//! The access log of a workload: MESH-2 to MESH-4, MESH-14, MESH-15, TEL-1 to TEL-7.

use std::sync::Arc;

use super::*;
use crate::account::{Encoding, Filter, Format, LogTarget};

/// What one output writes to, its format and filter in short.
fn outputs(loaded: &Loaded) -> Option<Vec<String>> {
    let describe = |one: &LogSettings| {
        let target = match &one.target {
            LogTarget::Stdout => "stdout".to_owned(),
            LogTarget::Stderr => "stderr".to_owned(),
            LogTarget::File(path) => path.display().to_string(),
        };
        let format = if *one.format == Format::built_in(Encoding::Text) {
            ""
        } else if *one.format == Format::built_in(Encoding::Json) {
            " json"
        } else {
            " custom"
        };
        let filter = if one.filter.is_some() { " filtered" } else { "" };
        format!("{target}{format}{filter}")
    };
    Some(loaded.snapshot.access_log.as_ref()?.iter().map(describe).collect())
}

fn some(expected: &[&str]) -> Option<Vec<String>> {
    Some(expected.iter().map(|text| (*text).to_owned()).collect())
}

#[test]
fn mesh_2_to_4_access_log() {
    for (text, expected) in [
        ("{}", None),
        ("accessLogFile: \"\"", some(&[])),
        ("accessLogFile: /dev/stdout", some(&["stdout"])),
        ("accessLogFile: /dev/stderr\naccessLogEncoding: JSON", some(&["stderr json"])),
        ("accessLogFile: /var/log/egress", some(&["/var/log/egress"])),
        ("accessLogFile: /l\naccessLogFormat: ''", some(&["/l"])),
        ("accessLogFile: /l\naccessLogFormat: '%PROTOCOL%'", some(&["/l custom"])),
        (
            "accessLogFile: /l\naccessLogFormat: '{\"a\": \"%PROTOCOL%\"}'\naccessLogEncoding: JSON",
            some(&["/l custom"]),
        ),
    ] {
        let loaded = load_mesh(text, Enforcement::Strict).expect("accepted");
        assert_eq!(outputs(&loaded), expected, "{text}");
    }
}

/// Providers of the matrix below: a file with labels, one with text, one that is no file.
const PROVIDERS: &str = "extensionProviders:\n\
    - name: labels\n  envoyFileAccessLog: {path: /labels, logFormat: {labels: {who: '%PROTOCOL%'}}}\n\
    - name: text\n  envoyFileAccessLog: {path: /dev/stderr, logFormat: {text: \"%PROTOCOL%\\n\"}}\n\
    - name: plain\n  envoyFileAccessLog: {path: /plain}\n\
    - name: json\n  envoyFileAccessLog: {path: /json, logFormat: {labels: {}}}\n\
    - name: otel\n  envoyOtelAls: {service: otel, port: 4317}\n";

/// Loads Telemetry items, each `namespace|more metadata or spec|accessLogging items`, beside a mesh
/// configuration, for a workload `app: client` in `default`.
fn load_levels(mesh: &str, levels: &[(&str, &str, &str)]) -> Loaded {
    let dir = tempfile::tempdir().expect("a directory");
    let (t, m) = (dir.path().join("t.yaml"), dir.path().join("m.yaml"));
    let documents: Vec<_> = levels
        .iter()
        .enumerate()
        .map(|(i, (namespace, spec, items))| {
            format!(
                "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: t{i}, \
                 namespace: {namespace}}}\nspec: {{{spec}accessLogging: [{items}]}}\n"
            )
        })
        .collect();
    std::fs::write(&t, documents.join("---\n")).expect("written");
    std::fs::write(&m, mesh).expect("written");
    let sources = Sources { files: vec![t], mesh_config: Some(m), ..Sources::default() };
    let caller = Caller {
        labels: vec![("app".into(), "client".into()), ("tier".into(), "x".into())],
        ..Caller::new("default")
    };
    load(&sources, &caller).unwrap_or_else(|errors| panic!("{levels:?}: {errors}"))
}

/// Namespace, further fields of `spec`, items of `accessLogging`.
type Level<'a> = (&'a str, &'a str, &'a str);

/// What it shows, the mesh configuration, the resources, the outputs.
type Row<'a> = (&'a str, &'a str, Vec<Level<'a>>, Option<Vec<String>>);

#[test]
fn tel_1_to_tel_4_and_tel_6_levels() {
    let file = "accessLogFile: /mesh\n";
    let file_and_default =
        format!("accessLogFile: /mesh\ndefaultProviders: {{accessLogging: [plain]}}\n{PROVIDERS}");
    let default = format!("defaultProviders: {{accessLogging: [plain, text]}}\n{PROVIDERS}");
    let (root, own) = ("istio-system", "default");
    let envoy = "{providers: [{name: envoy}]}";
    let mine = "selector: {matchLabels: {app: client}}, ";
    let theirs = "selector: {matchLabels: {app: other}}, ";
    let cases: Vec<Row<'_>> = vec![
        ("TEL-7: the seed's", "", vec![(root, "", envoy)], some(&["stdout"])),
        ("another namespace's", "", vec![("other", "", envoy)], None),
        ("a namespace's own", "", vec![(own, "", envoy)], some(&["stdout"])),
        ("TEL-3: off below", "", vec![(root, "", envoy), (own, "", "{disabled: true}")], some(&[])),
        (
            "TEL-3: on again by selector",
            "",
            vec![
                (root, "", envoy),
                (own, "", "{disabled: true}"),
                (own, mine, "{providers: [{name: envoy}], disabled: false}"),
            ],
            some(&["stdout"]),
        ),
        (
            "TEL-1: another workload's selector",
            "",
            vec![(root, "", envoy), (own, theirs, "{disabled: true}")],
            some(&["stdout"]),
        ),
        (
            "TEL-1: a selector that wants more than there is",
            "",
            vec![
                (root, "", envoy),
                (own, "selector: {matchLabels: {app: client, tier: y}}, ", "{disabled: true}"),
            ],
            some(&["stdout"]),
        ),
        (
            "TEL-3: enabled by disabled: false",
            "",
            vec![
                (root, "", "{providers: [{name: envoy}], disabled: true}"),
                (own, "", "{disabled: false}"),
            ],
            some(&["stdout"]),
        ),
        (
            "TEL-4: inbound only",
            "",
            vec![(root, "", envoy), (own, "", "{match: {mode: SERVER}, disabled: true}")],
            some(&["stdout"]),
        ),
        (
            "TEL-4: outbound off, inbound on",
            "",
            vec![(
                root,
                "",
                "{match: {mode: SERVER}, providers: [{name: envoy}]}, \
                 {match: {mode: CLIENT}, providers: [{name: envoy}], disabled: true}",
            )],
            some(&[]),
        ),
        (
            "TEL-2: a deeper list replaces",
            PROVIDERS,
            vec![(root, "", envoy), (own, "", "{providers: [{name: labels}]}")],
            some(&["/labels custom"]),
        ),
        (
            "TEL-2: several providers",
            PROVIDERS,
            vec![(
                own,
                "",
                "{providers: [{name: labels}, {name: text}]}, {providers: [{name: plain}, {name: json}]}",
            )],
            some(&["/labels custom", "stderr custom", "/plain", "/json json"]),
        ),
        (
            "TEL-3: one of two off",
            PROVIDERS,
            vec![(
                own,
                "",
                "{providers: [{name: labels}, {name: text}]}, {providers: [{name: text}], disabled: true}",
            )],
            some(&["/labels custom"]),
        ),
        ("MESH-15: no Telemetry", &default, vec![], some(&["/plain", "stderr custom"])),
        ("MESH-15: inherited", &default, vec![(own, "", "{}")], some(&["/plain", "stderr custom"])),
        ("MESH-15: off", &default, vec![(own, "", "{disabled: true}")], some(&[])),
        ("MESH-15 before MESH-2", &file_and_default, vec![], some(&["/plain"])),
        ("TEL-2: no provider at all", file, vec![(own, "", "{}")], some(&["/mesh"])),
        ("TEL-2: not additionally", file, vec![(own, "", envoy)], some(&["stdout"])),
        ("TEL-3: off, no provider", file, vec![(own, "", "{disabled: true}")], some(&[])),
        ("TEL-2: nothing listed", file, vec![(own, "", "")], some(&["/mesh"])),
        (
            "TEL-6: unknown is ignored",
            file,
            vec![(own, "", "{providers: [{name: nobody}]}")],
            some(&["/mesh"]),
        ),
        (
            "TEL-6: unknown, nothing else",
            "",
            vec![(own, "", "{providers: [{name: x}]}")],
            some(&[]),
        ),
        (
            "TEL-6: a provider that is no file",
            PROVIDERS,
            vec![(own, "", "{providers: [{name: otel}, {name: plain}]}")],
            some(&["/plain"]),
        ),
        (
            "TEL-6: envoy has the mesh's format",
            "accessLogEncoding: JSON",
            vec![(own, "", envoy)],
            some(&["stdout json"]),
        ),
        (
            "TEL-5: a filter",
            "",
            vec![(
                own,
                "",
                "{providers: [{name: envoy}], filter: {expression: 'response.code >= 400'}}",
            )],
            some(&["stdout filtered"]),
        ),
        (
            "TEL-5: a filter on what is inherited",
            "",
            vec![(root, "", envoy), (own, "", "{filter: {expression: 'true'}}")],
            some(&["stdout filtered"]),
        ),
        (
            "TEL-5: named anew without one",
            "",
            vec![
                (root, "", "{providers: [{name: envoy}], filter: {expression: 'true'}}"),
                (own, "", envoy),
            ],
            some(&["stdout"]),
        ),
    ];
    for (name, mesh, levels, expected) in cases {
        assert_eq!(outputs(&load_levels(mesh, &levels)), expected, "{name}");
    }
}

/// TEL-1: of two without a selector the older one counts.
#[test]
fn tel_1_the_oldest() {
    let one = |name: &str, created: &str, items: &str| {
        format!(
            "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: {name}, \
             creationTimestamp: \"{created}\"}}\nspec: {{accessLogging: [{items}]}}\n---\n"
        )
    };
    let text = one("a", "2024-02-01T00:00:00Z", "{disabled: true}")
        + &one("b", "2024-01-01T00:00:00Z", "{providers: [{name: envoy}]}");
    let loaded = load_text(&text, Enforcement::Istio).expect("accepted");
    assert_eq!(outputs(&loaded), some(&["stdout"]));
}

#[test]
fn mesh_3_and_mesh_14_formats_are_those_given() {
    let loaded =
        load_levels(PROVIDERS, &[("default", "", "{providers: [{name: labels}, {name: text}]}")]);
    let formats: Vec<_> =
        loaded.snapshot.access_log.expect("given").into_iter().map(|one| one.format).collect();
    let labels = serde_json::json!({"who": "%PROTOCOL%"});
    let expected = [
        Format::json(labels.as_object().expect("an object")).expect("parses"),
        Format::text("%PROTOCOL%").expect("parses"),
    ];
    assert_eq!(formats, expected.map(Arc::new));
    let level = ("default", "", "{providers: [{name: envoy}], filter: {expression: \"true\"}}");
    let filtered = load_levels("", &[level]).snapshot.access_log.expect("given");
    assert_eq!(filtered[0].filter, Some(Arc::new(Filter::parse("true").expect("parses"))));
}

/// Words and places of warnings, rejections and errors.
#[test]
fn telemetry_mistakes() {
    let telemetry = |spec: &str| {
        format!(
            "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: t}}\nspec:\n  {spec}\n"
        )
    };
    for (spec, rejected) in [
        (
            "accessLogging: [{filter: {expression: )++++}}]",
            "p.yaml:5:41: Telemetry default/t: spec.accessLogging[0].filter.expression: line 1, \
             column 1 of the expression: Syntax error: mismatched input ')'",
        ),
        (
            "accessLogging: [{filter: {expression: response.code >=}}]",
            "p.yaml:5:57: Telemetry default/t: spec.accessLogging[0].filter.expression: line 1, \
             column 17 of the expression: Syntax error: mismatched input '<EOF>'",
        ),
        (
            "accessLogging: [{providers: [{name: \"\"}]}]",
            "p.yaml:5:32: Telemetry default/t: spec.accessLogging[0].providers[0].name: missing",
        ),
        (
            "{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Gateway, name: g}]}",
            "p.yaml:5:49: Telemetry default/t: spec.targetRefs: only one of selector and targetRefs",
        ),
        (
            "selector: {matchLabels: {a: \"b*\"}}",
            "p.yaml:5:13: Telemetry default/t: spec.selector: label \"a\": neither an empty name nor \
             a * in its value",
        ),
    ] {
        let loaded = load_text(&telemetry(spec), Enforcement::Istio).expect(spec);
        assert_eq!(texts(&loaded.rejected), [rejected], "{spec}");
        assert_eq!(outputs(&loaded), None, "left out: {spec}");
    }
    let loaded =
        load_levels(PROVIDERS, &[("default", "", "{providers: [{name: nobody}, {name: otel}]}")]);
    let warnings: Vec<_> = loaded.warnings.iter().map(|w| w.message.as_str()).collect();
    assert_eq!(
        warnings,
        [
            "provider \"nobody\" is not known and is ignored; known: envoy, labels, text, plain, json, otel",
            "provider \"otel\" logs by envoyOtelAls, which is not supported; it is ignored",
        ]
    );
    for (mesh, expected) in [
        (
            "extensionProviders: [{name: a, envoyFileAccessLog: {}}]",
            "p.yaml:1:52: extensionProviders[0].envoyFileAccessLog.path: missing; give a file or \
             /dev/stdout",
        ),
        (
            "extensionProviders: [{name: a, envoyFileAccessLog: {path: /a, logFormat: {text: '%X%'}}}]",
            "p.yaml:1:81: extensionProviders[0].envoyFileAccessLog.logFormat.text: character 1: \
             unknown operator X",
        ),
        (
            "extensionProviders: [{name: a, envoyFileAccessLog: {path: /a, logFormat: {labels: [a]}}}]",
            "p.yaml:1:83: extensionProviders[0].envoyFileAccessLog.logFormat.labels: expected a JSON \
             object of key to format",
        ),
        (
            "extensionProviders: [{name: a, nonsense: {}}]",
            "p.yaml:1:32: extensionProviders[0].nonsense: unknown field",
        ),
        (
            "extensionProviders: [{prometheus: {}}]",
            "p.yaml:1:22: extensionProviders[0].name: missing",
        ),
    ] {
        let errors = load_mesh(mesh, Enforcement::Istio).expect_err(mesh);
        assert!(errors[0].starts_with(expected), "{mesh}: {errors:?}");
    }
}

/// Telemetry's other parts have no effect, but not just any shape.
#[test]
fn metrics_and_tracing_are_read_and_have_no_effect() {
    let telemetry = |spec: &str| {
        format!(
            "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: t}}\nspec:\n  \
             {spec}\n  accessLogging: [{{providers: [{{name: envoy}}]}}]\n"
        )
    };
    let whole = "metrics: [{providers: [{name: prometheus}], reportingInterval: 5s, overrides: [\
                 {match: {metric: REQUEST_COUNT, mode: CLIENT}, disabled: true, tagOverrides: \
                 {a: {operation: REMOVE}, b: {value: request.host}}}, {match: {customMetric: c}}]}]\n  \
                 tracing: [{match: {mode: SERVER}, providers: [{name: zipkin}], \
                 randomSamplingPercentage: 12.5, disableSpanReporting: false, enableIstioTags: true, \
                 useRequestIdForTraceSampling: true, customTags: {a: {literal: {value: x}}, \
                 b: {environment: {name: B, defaultValue: y}}, c: {header: {name: h}}}}]";
    let loaded = load_text(&telemetry(whole), Enforcement::Istio).expect("accepted");
    assert_eq!(outputs(&loaded), some(&["stdout"]), "{:?}", texts(&loaded.rejected));
    assert_eq!(
        texts(&loaded.warnings),
        [
            "p.yaml:5:13: Telemetry default/t: spec.metrics: not supported yet: only accessLogging \
             has an effect",
            "p.yaml:6:13: Telemetry default/t: spec.tracing: not supported yet: only accessLogging \
             has an effect",
        ]
    );
    for (spec, rejected) in [
        ("tracing: [{randomSamplingPercentage: 101}]", "must lie between 0 and 100"),
        ("tracing: [{providers: [{}]}]", "tracing[0].providers[0].name: missing"),
        ("tracing: [{customTags: {a: {}}}]", "exactly one of literal, environment, header"),
        ("tracing: [{customTags: {a: {header: {}}}}]", "customTags.a.header.name: missing"),
        ("tracing: [{customTags: {\"\": {literal: {value: x}}}}]", "a tag needs a name"),
        ("metrics: [{overrides: [{tagOverrides: {a: {}}}]}]", "a: UPSERT needs a value"),
        (
            "metrics: [{overrides: [{tagOverrides: {a: {operation: REMOVE, value: x}}}]}]",
            "REMOVE takes no value",
        ),
        (
            "metrics: [{overrides: [{match: {metric: REQUEST_SIZE, customMetric: x}}]}]",
            "only one of metric and customMetric",
        ),
    ] {
        let loaded = load_text(&telemetry(spec), Enforcement::Istio).expect(spec);
        let notices = texts(&loaded.rejected);
        assert!(notices.len() == 1 && notices[0].contains(rejected), "{spec}: {notices:?}");
        assert_eq!(outputs(&loaded), None, "left out: {spec}");
    }
    for (spec, error) in [
        ("metrics: [{overridez: []}]", "spec.metrics[0].overridez: unknown field"),
        ("metrics: {}", "spec.metrics: expected a list"),
        ("metrics: [{overrides: [{match: {metric: X}}]}]", "unknown value \"X\"; use one of ALL"),
        ("metrics: [{reportingInterval: soon}]", "\"soon\" is not a duration"),
        ("tracing: [{match: {metric: X}}]", "spec.tracing[0].match.metric: unknown field"),
        (
            "tracing: [{match: {mode: BOTH}}]",
            "unknown value \"BOTH\"; use one of CLIENT_AND_SERVER",
        ),
        ("tracing: [{enableIstioTags: 1}]", "expected true or false"),
    ] {
        let errors = load_text(&telemetry(spec), Enforcement::Istio).expect_err(spec);
        assert!(errors.iter().any(|text| text.contains(error)), "{spec}: {errors:?}");
    }
}
