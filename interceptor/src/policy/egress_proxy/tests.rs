//! What may be written, and the words for what may not.

use super::super::tests::load_text;
use super::super::{Enforcement, Loaded};
use super::pattern::{Dialect, parse};

fn config(spec: &str) -> String {
    format!(
        "apiVersion: egress.interceptor.io/v1alpha1\nkind: InterceptorConfig\n\
         metadata: {{name: default}}\nspec: {{egressProxy: {{{spec}}}}}\n"
    )
}

fn load(spec: &str) -> Result<Loaded, Vec<String>> {
    load_text(&config(spec), Enforcement::Strict)
}

const PROXY: &str = "{name: p, url: 'http://p.test:3128'}";

/// Each error with its field and what to do.
#[test]
fn what_does_not_hold_is_said() {
    let with = |more: &str| format!("proxies: [{PROXY}], {more}");
    let proxy = |more: &str| format!("proxies: [{{name: p, {more}}}]");
    for (spec, expected) in [
        (String::new(), "egressProxy.proxies: list at least one proxy"),
        ("proxies: [{url: 'http://p.test:1'}]".into(), "proxies[0].name: missing"),
        (proxy("credentialsFile: /f"), "proxies[0].url: missing"),
        (proxy("url: p.test"), "proxies[0].url: not a proxy's url; write it like http://proxy"),
        (
            proxy("url: 'ftp://p.test:1'"),
            "proxies[0].url: unknown scheme; use http, https, socks5 or hbone",
        ),
        (proxy("url: 'http://p.test'"), "proxies[0].url: the port is missing"),
        (proxy("url: 'http://u:secret@p.test:1'"), "proxies[0].url: no user and password here"),
        (proxy("url: 'http://p.test:1', tls: {}"), "proxies[0].tls: TLS to the proxy needs a url"),
        (
            proxy("url: 'https://p.test:1', tls: {privateKey: /k}"),
            "proxies[0].tls: clientCertificate and privateKey need each other",
        ),
        (
            proxy("url: 'http://p.test:1', credentialsFile: /f, credentialName: s"),
            "credentialName: credentialsFile and credentialName exclude each other",
        ),
        (proxy("url: 'hbone://p.test:1'"), "proxies[0].tls: a gateway knows a node by its"),
        (
            proxy("url: 'hbone://p.test:1', tls: {clientCertificate: /c, privateKey: /k}"),
            "proxies[0].tls.caCertificates: name the authority that signs the gateway's",
        ),
        (
            proxy("url: 'hbone://p.test:1', credentialName: s, tls: {}"),
            "proxies[0].url: a gateway takes no user and password",
        ),
        (proxy("url: 'http://p.test:1', user: u"), "proxies[0].user: unknown field"),
        (format!("proxies: [{PROXY}, {PROXY}]"), "proxies[1].name: a second proxy called \"p\""),
        (with("rules: [{proxies: [q]}]"), "no proxy is called \"q\"; there are p"),
        (with("rules: [{hosts: [a.test]}]"), "rules[0]: needs either direct: true or a list"),
        (with("rules: [{direct: true, proxies: [p]}]"), "rules[0]: needs either direct: true or"),
        (
            with("rules: [{hosts: [], direct: true}]"),
            "rules[0].hosts: an empty list is for no host",
        ),
        (with("rules: [{hosts: ['*a.test'], direct: true}]"), "a wildcard is a whole label"),
        (with("noProxy: 10.0.0.0/33"), "egressProxy.noProxy: \"10.0.0.0/33\": not a network"),
        (
            with("plainHTTP: connect"),
            "egressProxy.plainHTTP: unknown value \"connect\"; use one of",
        ),
    ] {
        let said = load(&spec).expect_err(&spec).join("\n");
        assert!(said.contains(expected), "{spec}: {said}");
        assert!(!said.contains("secret"), "{said}");
    }
    let unreached = load(&with("rules: [{proxies: [p]}, {hosts: [a.test], direct: true}]"));
    let warnings = super::super::tests::texts(&unreached.expect("accepted").warnings);
    assert!(warnings[0].contains("rules[1]: never reached"), "{warnings:?}");
}

#[test]
fn hosts_and_networks_as_people_write_them() {
    for (text, dialect, expected) in [
        ("*", Dialect::Hosts, "Any None"),
        ("*:8080", Dialect::Hosts, "Any Some(8080)"),
        ("a.test", Dialect::Hosts, "Host(Exact(HostName(\"a.test\"))) None"),
        ("a.test", Dialect::NoProxy, "Domain(HostName(\"a.test\")) None"),
        ("A.test:443", Dialect::NoProxy, "Domain(HostName(\"a.test\")) Some(443)"),
        (".a.test", Dialect::NoProxy, "Host(Wildcard(HostName(\"a.test\"))) None"),
        ("*.a.test", Dialect::NoProxy, "Host(Wildcard(HostName(\"a.test\"))) None"),
        ("192.0.2.1", Dialect::Hosts, "Network(192.0.2.1/32) None"),
        ("192.0.2.1:80", Dialect::Hosts, "Network(192.0.2.1/32) Some(80)"),
        ("192.0.2.9/24", Dialect::NoProxy, "Network(192.0.2.0/24) None"),
        ("2001:db8::1", Dialect::NoProxy, "Network(2001:db8::1/128) None"),
        ("[2001:db8::1]:80", Dialect::Hosts, "Network(2001:db8::1/128) Some(80)"),
    ] {
        let pattern = parse(text, dialect).unwrap_or_else(|why| panic!("{text}: {why}"));
        assert_eq!(format!("{:?} {:?}", pattern.what, pattern.port), expected, "{text}");
    }
    for text in ["", "a b", "a.test:0", "a.test:x", "*.*.test", "10.0.0.0/8:80"] {
        assert!(parse(text, Dialect::Hosts).is_err(), "{text}");
    }
}

/// T-47: neither what is loaded nor what is said of it holds a password.
#[test]
fn a_secret_is_found_and_not_shown() {
    let secret = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\n\
                  stringData: {username: user, password: hunter2}\n";
    let text = config("proxies: [{name: p, url: 'socks5://192.0.2.1:1080', credentialName: s}]");
    let loaded = load_text(&(text + secret), Enforcement::Strict).expect("accepted");
    let shown = format!("{loaded:?}");
    assert!(shown.contains("password: true"), "the Secret is there");
    assert!(!shown.contains("hunter2") && !shown.contains("104, 117, 110"), "{shown}");
}
