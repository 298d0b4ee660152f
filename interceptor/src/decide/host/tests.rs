use std::collections::HashMap;

use super::*;

fn name(text: &str) -> HostName {
    HostName::parse(text).unwrap()
}

#[test]
fn t20_names_take_their_normal_form() {
    let label63 = "a".repeat(63);
    let longest = [label63.as_str(), &label63, &label63, &"b".repeat(61)].join(".");
    assert_eq!(longest.len(), 253);
    for (written, normal) in [
        ("example.com", "example.com"),
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("localhost", "localhost"),
        ("_dmarc.a_b.example", "_dmarc.a_b.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("1.2.3.4.example", "1.2.3.4.example"),
        ("123.com", "123.com"),
        ("0x7f.com", "0x7f.com"),
        ("0xg", "0xg"),
        (&longest, &longest),
        (&format!("{longest}."), &longest),
    ] {
        assert_eq!(name(written).as_str(), normal, "{written}");
        assert_eq!(name(written).to_string(), normal, "{written}");
    }
}

#[test]
fn t20_what_is_not_a_name_is_refused_with_its_reason() {
    let (empty, ip) = ("host name is empty", "host name is an IP address");
    let label = "host name has an empty label";
    let byte = "host name has a character outside letters, digits, '-' and '_'";
    let label64 = "a".repeat(64);
    let name254 = format!("{}ab", "abc.".repeat(63));
    assert_eq!(name254.len(), 254);
    for (text, reason) in [
        ("", empty),
        (".", empty),
        ("..", label),
        (".a.com", label),
        ("a..com", label),
        ("a.com..", label),
        (label64.as_str(), "host name has a label longer than 63 bytes"),
        (name254.as_str(), "host name is longer than 253 bytes"),
        ("a\0b.com", byte),
        ("a b.com", byte),
        (" a.com", byte),
        ("a.com\n", byte),
        ("a\x7f.com", byte),
        ("a/b.com", byte),
        ("u@a.com", byte),
        ("a%2ecom", byte),
        ("*.a.com", byte),
        ("bücher.example", byte),
        ("a.com:443", ip),
        ("127.0.0.1", ip),
        ("127.0.0.1.", ip),
        ("127.1", ip),
        ("2130706433", ip),
        ("0x7f000001", ip),
        ("0X7F.0.0.0x1", ip),
        ("0x", ip),
        ("0177.0.0.01", ip),
        ("1.2.3.4.5", ip),
        ("::1", ip),
        ("[::1]", ip),
        ("::ffff:127.0.0.1", ip),
    ] {
        assert_eq!(HostName::parse(text), Err(BadHostName(reason)), "{text:?}");
    }
}

#[test]
fn parents_are_the_longest_first() {
    assert_eq!(name("a.b.c.test").parents().collect::<Vec<_>>(), ["b.c.test", "c.test", "test"]);
    assert_eq!(name("test").parents().count(), 0);
}

#[test]
fn a_map_of_suffixes_finds_the_most_specific_wildcard() {
    let map = HashMap::from([(name("test"), 1), (name("b.test"), 2)]);
    let wildcard = |host: &str| name(host).parents().find_map(|suffix| map.get(suffix).copied());
    assert_eq!(wildcard("x.a.b.test"), Some(2));
    assert_eq!(wildcard("b.test"), Some(1));
    assert_eq!(wildcard("test"), None);
}
