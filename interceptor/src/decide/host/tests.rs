use std::collections::HashMap;

use super::*;

fn name(text: &str) -> HostName {
    HostName::parse(text).unwrap()
}

fn pattern(text: &str) -> HostPattern {
    HostPattern::parse(text).unwrap()
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

#[test]
fn http4_t22_matching_is_by_whole_labels() {
    for (text, host, want) in [
        ("allowed.test", "allowed.test", true),
        ("allowed.test", "ALLOWED.test.", true),
        ("Allowed.Test.", "allowed.test", true),
        ("allowed.test", "evilallowed.test", false),
        ("allowed.test", "allowed.test.evil", false),
        ("allowed.test", "www.allowed.test", false),
        ("*.allowed.test", "www.allowed.test", true),
        ("*.allowed.test", "a.b.c.allowed.test", true),
        ("*.Allowed.test.", "WWW.allowed.TEST", true),
        ("*.allowed.test", "allowed.test", false),
        ("*.allowed.test", "evilallowed.test", false),
        ("*.allowed.test", "x.evilallowed.test", false),
        ("*.allowed.test", "x.allowed.test.evil", false),
        ("*.allowed.test", "test", false),
        ("*.test", "a.test", true),
    ] {
        assert_eq!(pattern(text).matches(&name(host)), want, "{text} against {host}");
    }
}

#[test]
fn http6_each_misuse_of_the_star_has_its_own_reason() {
    use BadHostPattern::*;
    for (text, want) in [
        ("*", MatchAll),
        ("*foo.com", Partial),
        ("**", Partial),
        ("**.foo.com", Partial),
        ("*foo", Partial),
        ("a.*.com", Misplaced),
        ("a*.com", Misplaced),
        ("foo.*", Misplaced),
        ("*.*.com", Misplaced),
        ("*.a*b.com", Misplaced),
        ("*.", Name(BadHostName("host name is empty"))),
        ("", Name(BadHostName("host name is empty"))),
        ("*..com", Name(BadHostName("host name has an empty label"))),
        ("*.0.0.1", Name(BadHostName("host name is an IP address"))),
        ("10.0.0.1", Name(BadHostName("host name is an IP address"))),
    ] {
        assert_eq!(HostPattern::parse(text), Err(want), "{text:?}");
    }
    let texts = [MatchAll, Partial, Misplaced].map(|reason| reason.to_string());
    assert_eq!(texts.iter().filter(|text| text.contains("wildcard")).count(), 2);
    assert!(texts[0].contains("every host"), "{}", texts[0]);
}

#[test]
fn patterns_print_as_written_in_normal_form() {
    for (written, printed) in [("*.Example.COM.", "*.example.com"), ("A.b", "a.b")] {
        assert_eq!(pattern(written).to_string(), printed);
        assert_eq!(pattern(printed), pattern(written));
    }
}

#[test]
fn http2_exact_then_the_longest_suffix() {
    let host = name("a.b.test");
    let mut patterns = ["*.test", "a.b.test", "*.b.test"].map(pattern);
    assert!(patterns.iter().all(|p| p.matches(&host)));
    patterns.sort_by_key(|p| std::cmp::Reverse(p.specificity()));
    assert_eq!(patterns.map(|p| p.to_string()), ["a.b.test", "*.b.test", "*.test"]);
    // A short exact name still beats a long wildcard.
    assert!(pattern("a").specificity() > pattern("*.a.very.long.suffix").specificity());
}
