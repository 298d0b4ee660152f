//! Hellos of every sort, and what each reads as.

mod in_kernel;
mod mutation;
mod two_readers;

use super::sample::{Sample, message, record, records, rustls, server_names, vec8, vec16};
use super::*;
use crate::decide::host::HostName;

fn scan(bytes: &[u8]) -> Scan<ClientHello> {
    Reader::default().push(bytes)
}

fn refused(why: &'static str) -> Scan<ClientHello> {
    Scan::Malformed(Malformed(why))
}

/// What a hello that only names `name` reads as.
fn names(name: &str) -> Scan<ClientHello> {
    Scan::Found(ClientHello { sni: Some(HostName::parse(name).unwrap()), ..ClientHello::default() })
}

fn dotted(name: &str) -> Scan<ClientHello> {
    let sni = Some(HostName::parse(name).unwrap());
    Scan::Found(ClientHello { sni, dotted: true, ..ClientHello::default() })
}

fn nameless() -> Scan<ClientHello> {
    Scan::Found(ClientHello::default())
}

/// Honest hellos of all sorts with what they read as.
fn honest() -> Vec<(Vec<u8>, Scan<ClientHello>)> {
    let sni = |name: &str| Some(HostName::parse(name).unwrap());
    let alpn: Vec<Vec<u8>> = vec![b"h2".into(), b"http/1.1".into()];
    let grease = Sample::default()
        .ext(0x0a0a, [])
        .ext(0, server_names(&[(0, b"grease.test")]))
        .ext(0xfafa, [0])
        .ext(16, vec16([vec8(b"h2"), vec8(b"http/1.1")].concat()));
    // An ML-KEM share of a browser: 1184 + 32 bytes of key.
    let post_quantum =
        Sample::named("pq.test").ext(51, vec16([&[0x11, 0xec][..], &vec16([5; 1216])].concat()));
    vec![
        (
            rustls("www.example.com", &["h2", "http/1.1"], false),
            Scan::Found(ClientHello {
                sni: sni("www.example.com"),
                alpn: alpn.clone(),
                ..ClientHello::default()
            }),
        ),
        (rustls("old.example.com", &[], true), names("old.example.com")),
        (rustls("192.0.2.1", &[], false), nameless()),
        (Sample::named("a.test").bytes(), names("a.test")),
        (Sample::default().bytes(), nameless()),
        (
            grease.bytes(),
            Scan::Found(ClientHello { sni: sni("grease.test"), alpn, ..ClientHello::default() }),
        ),
        (
            Sample::named("dot.test.").bytes(),
            Scan::Found(ClientHello {
                sni: sni("dot.test"),
                dotted: true,
                ..ClientHello::default()
            }),
        ),
        (post_quantum.bytes(), names("pq.test")),
        (
            Sample::named("public.test").ext(0xfe0d, [0; 180]).bytes(),
            Scan::Found(ClientHello {
                sni: sni("public.test"),
                ech: true,
                ..ClientHello::default()
            }),
        ),
    ]
}

#[test]
fn honest_hellos_are_read_at_their_last_byte_and_not_before() {
    for (bytes, want) in honest() {
        for cut in 0..bytes.len() {
            let mut reader = Reader::default();
            assert_eq!(reader.push(&bytes[..cut]), Scan::NeedMore, "{cut} of {want:?}");
            assert_eq!(reader.push(&bytes[cut..]), want, "cut at {cut}");
        }
    }
}

#[test]
fn t17_one_byte_segments_read_as_one() {
    for (bytes, want) in honest() {
        let mut reader = Reader::default();
        let (last, before) = bytes.split_last().unwrap();
        for byte in before {
            assert_eq!(reader.push(&[*byte]), Scan::NeedMore);
        }
        assert_eq!(reader.push(&[*last]), want);
    }
}

#[test]
fn t17_every_record_size_reads_as_one() {
    for (bytes, want) in honest() {
        let message = &bytes[RECORD_HEADER..];
        for size in 1..=message.len() {
            assert_eq!(scan(&records(message, size)), want, "records of {size}");
        }
    }
}

#[test]
fn t17_empty_records_are_refused() {
    let message = Sample::named("a.test").message();
    for cut in 0..message.len() {
        let bytes =
            [records(&message[..cut], 99), record(22, &[]), records(&message[cut..], 99)].concat();
        assert_eq!(scan(&bytes), refused("empty handshake record"), "{cut}");
    }
}

#[test]
fn t17_another_record_inside_the_hello_is_refused() {
    let message = Sample::named("a.test").message();
    for kind in [20, 21, 23, 24, 0, 255] {
        let bytes =
            [record(22, &message[..9]), record(kind, &[1]), record(22, &message[9..])].concat();
        assert_eq!(scan(&bytes), refused("another record type inside the ClientHello"), "{kind}");
    }
    let mut bytes = [record(22, &message[..9]), record(22, &message[9..])].concat();
    bytes[RECORD_HEADER + 9 + 1] = 2;
    assert_eq!(scan(&bytes), refused("impossible record version"));
}

#[test]
fn t17_padding_of_8_kib_passes() {
    assert_eq!(scan(&Sample::named("a.test").ext(21, [0; 8192]).bytes()), names("a.test"));
}

#[test]
fn t18_size() {
    let longest = MAX_BYTES - 4 * RECORD_HEADER;
    for (len, want) in [
        (16 * 1024, names("a.test")),
        (16 * 1024 + 1, names("a.test")),
        (longest, names("a.test")),
        (longest + 1, refused("ClientHello is longer than 64 KiB")),
    ] {
        // One extension holds less than 64 KiB, so two share the padding.
        let sample = Sample::named("a.test").ext(0x1234, [0; 8000]).padded_to(len);
        assert_eq!(sample.message().len(), len);
        assert_eq!(scan(&sample.bytes()), want, "{len}");
    }
}

#[test]
fn t18_a_declared_length_above_the_bound_is_refused_at_once() {
    let too_long = (MAX_BYTES - RECORD_HEADER - HANDSHAKE_HEADER + 1) as u32;
    for len in [too_long, 0x00ff_ffff] {
        let header = [&[1], &len.to_be_bytes()[1..]].concat();
        assert_eq!(scan(&record(22, &header)), refused("ClientHello is longer than 64 KiB"));
    }
    let header = [&[1], &(too_long - 1).to_be_bytes()[1..]].concat();
    assert_eq!(scan(&record(22, &header)), Scan::NeedMore);
}

#[test]
fn t18_tiny_records_count_against_the_bound() {
    let message = Sample::named("a.test").ext(21, [0; 12_000]).message();
    let bytes = records(&message, 1);
    assert!(bytes.len() > MAX_BYTES);
    assert_eq!(scan(&bytes[..MAX_BYTES - 1]), Scan::NeedMore);
    assert_eq!(scan(&bytes[..MAX_BYTES]), refused("ClientHello is longer than 64 KiB"));
}

#[test]
fn t18_the_cost_is_linear_in_the_bytes_whatever_the_pieces() {
    let sample = Sample::named("a.test").ext(0x1234, [0; 8000]).padded_to(MAX_BYTES - 20);
    let hostile = records(&sample.message(), 1)[..MAX_BYTES - 1].to_vec();
    for bytes in [sample.bytes(), hostile] {
        for piece in [1, 2, 1500, MAX_BYTES] {
            let mut reader = Reader::default();
            for piece in bytes.chunks(piece) {
                reader.push(piece);
            }
            assert!(reader.work >= bytes.len(), "the counter counts");
            assert!(reader.work <= 2 * bytes.len(), "{} for {} bytes", reader.work, bytes.len());
        }
    }
}

#[test]
fn t19_two_server_name_extensions_refused() {
    for second in ["a.test", "b.test"] {
        let sample = Sample::named("a.test").ext(0, server_names(&[(0, second.as_bytes())]));
        assert_eq!(scan(&sample.bytes()), refused("the same extension twice"));
    }
    assert_eq!(
        scan(&Sample::named("a.test").ext(0, []).bytes()),
        refused("the same extension twice")
    );
}

#[test]
fn t19_any_extension_twice_refused() {
    for kind in [16, 21, 42, 43, 51, 0xfe0d, 0x0a0a, 0x7777] {
        let data = vec16(vec8(b"h2"));
        let sample = Sample::named("a.test").ext(kind, &data).ext(0xaaaa, []).ext(kind, &data);
        assert_eq!(scan(&sample.bytes()), refused("the same extension twice"), "{kind:#x}");
    }
}

#[test]
fn t19_two_server_names_refused() {
    for (list, why) in [
        (&[(0, &b"a.test"[..]), (0, b"b.test")][..], "more than one server name"),
        (&[(0, b"a.test"), (0, b"a.test")], "more than one server name"),
        (&[(0, b"a.test"), (1, b"b.test")], "more than one server name"),
        (&[(0, b""), (0, b"b.test")], "more than one server name"),
        (&[(1, b"a.test"), (0, b"b.test")], "server name of an unknown type"),
        (&[(1, b"a.test")], "server name of an unknown type"),
        (&[(255, b"")], "server name of an unknown type"),
    ] {
        let sample = Sample::default().ext(0, server_names(list));
        assert_eq!(scan(&sample.bytes()), refused(why), "{list:?}");
    }
}

#[test]
fn t19_a_second_hello_in_the_flight_refused() {
    let (first, second) = (Sample::named("a.test"), Sample::named("b.test"));
    let in_the_record = record(22, &[first.message(), second.message()].concat());
    assert_eq!(scan(&in_the_record), refused("bytes behind the ClientHello in its record"));
    let next_record = [first.bytes(), second.bytes()].concat();
    assert_eq!(scan(&next_record), refused("second handshake message in the first flight"));
    assert_eq!(
        scan(&next_record[..=first.bytes().len()]),
        refused("second handshake message in the first flight")
    );
    let early = first.ext(42, []).bytes();
    let behind_data = [early, record(20, &[1]), record(23, &[1; 99]), second.bytes()].concat();
    assert_eq!(scan(&behind_data), refused("second handshake message in the first flight"));
}

#[test]
fn t19_what_may_and_may_not_follow_a_hello() {
    let plain = Sample::named("a.test");
    let early = plain.clone().ext(42, []);
    let behind = "bytes behind the ClientHello";
    let length = "bad record length behind the ClientHello";
    for (sample, rest, want) in [
        (&early, [record(20, &[1]), record(23, &[1; 99])].concat(), names("a.test")),
        (&early, record(23, &[1; 99])[..7].to_vec(), names("a.test")),
        (&early, record(23, &[1; 16384 + 256]), names("a.test")),
        (&early, record(23, &[1; 16384 + 257]), refused(length)),
        (&early, record(23, &[]), refused(length)),
        (&early, vec![23, 2], refused(behind)),
        (&early, record(24, &[1]), refused(behind)),
        (&plain, record(21, &[2, 0]), names("a.test")),
        (&plain, record(20, &[1]), refused(behind)),
        (&plain, record(23, &[1; 99]), refused(behind)),
        (&plain, b"GET / HTTP/1.1\r\n".to_vec(), refused(behind)),
    ] {
        assert_eq!(
            scan(&[sample.bytes(), rest.clone()].concat()),
            want,
            "{:?}",
            &rest[..rest.len().min(7)]
        );
    }
}

#[test]
fn t20_name_bytes() {
    let byte = "host name has a character outside letters, digits, '-' and '_'";
    for (name, want) in [
        (&b"EXAMPLE.Test"[..], names("example.test")),
        (b"example.test.", dotted("example.test")),
        (b"_a.b_c.test", names("_a.b_c.test")),
        (b"a\0b.test", refused(byte)),
        (b"allowed.test\0.evil.test", refused(byte)),
        (b"a b.test", refused(byte)),
        (b"a/b.test", refused(byte)),
        (b"u@a.test", refused(byte)),
        (b"a%2etest", refused(byte)),
        (b"a\x1b.test", refused(byte)),
        ("bücher.test".as_bytes(), refused(byte)),
        (b"b\xfccher.test", refused("server name is not text")),
        (b"a..test", refused("host name has an empty label")),
        (b".", refused("host name is empty")),
        (b"a.test:443", refused("host name is an IP address")),
        (b"192.0.2.1", refused("host name is an IP address")),
        (b"0xc0000201", refused("host name is an IP address")),
        (b"3221225985", refused("host name is an IP address")),
        (b"[2001:db8::1]", refused("host name is an IP address")),
        (&[b'a'; 64], refused("host name has a label longer than 63 bytes")),
        (&b"abc.".repeat(64), refused("host name is longer than 253 bytes")),
        // T-22: a wildcard sent as a name matches nothing.
        (b"*.test", refused(byte)),
    ] {
        assert_eq!(scan(&Sample::named(name).bytes()), want, "{}", name.escape_ascii());
    }
}

#[test]
fn t21_no_name() {
    for sample in [
        Sample::default(),
        Sample { extensions: Some(vec![]), ..Sample::default() },
        Sample::default().ext(0, []),
        Sample::default().ext(0, server_names(&[])),
        Sample::default().ext(0, server_names(&[(0, b"")])),
    ] {
        assert_eq!(scan(&sample.bytes()), nameless(), "{sample:?}");
    }
}

#[test]
fn t23_wrong_lengths_of_server_name() {
    let good = server_names(&[(0, b"a.test")]);
    for at in 0..good.len() {
        if let Scan::Found(hello) = scan(&Sample::default().ext(0, &good[..at]).bytes()) {
            assert_eq!((hello.sni, at), (None, 0), "cut at {at}");
        }
    }
    // Each length one too small and one too big.
    for at in [1, 4] {
        for change in [1, 255] {
            let mut data = good.clone();
            data[at] = data[at].wrapping_add(change);
            assert_eq!(
                scan(&Sample::default().ext(0, &data).bytes()),
                refused(if at == 4 && change == 255 {
                    "more than one server name"
                } else {
                    "server_name has a wrong length"
                }),
                "{at} {change}"
            );
        }
    }
    let trailing = [good, vec![0]].concat();
    assert_eq!(
        scan(&Sample::default().ext(0, trailing).bytes()),
        refused("server_name has a wrong length")
    );
}

#[test]
fn t23_wrong_lengths_of_alpn() {
    for data in [
        &[][..],
        &[0],
        &[0, 0],
        &[0, 1, 0],
        &[0, 3, 3, b'h', b'2'],
        &[0, 4, 2, b'h', b'2', 0],
        &[0, 4, 2, b'h', b'2'],
        &[0, 2, 2, b'h', b'2'],
    ] {
        let sample = Sample::named("a.test").ext(16, data);
        assert_eq!(scan(&sample.bytes()), refused("ALPN has a wrong length"), "{data:?}");
    }
}

#[test]
fn t23_wrong_vectors_and_versions_of_the_hello() {
    let good = Sample::named("a.test");
    for (sample, want) in [
        (Sample { version: [3, 1], ..good.clone() }, names("a.test")),
        (Sample { version: [3, 2], ..good.clone() }, names("a.test")),
        (Sample { session: vec![], ..good.clone() }, names("a.test")),
        (Sample { compression: vec![1, 0], ..good.clone() }, names("a.test")),
        (Sample { version: [3, 0], ..good.clone() }, refused("impossible ClientHello version")),
        (Sample { version: [3, 4], ..good.clone() }, refused("impossible ClientHello version")),
        (Sample { version: [2, 0], ..good.clone() }, refused("impossible ClientHello version")),
        (
            Sample { version: [0xfe, 0xfd], ..good.clone() },
            refused("impossible ClientHello version"),
        ),
        (
            Sample { session: vec![0; 33], ..good.clone() },
            refused("ClientHello has a wrong length inside"),
        ),
        (
            Sample { ciphers: vec![0x13], ..good.clone() },
            refused("ClientHello has a wrong length inside"),
        ),
        (Sample { ciphers: vec![], ..good.clone() }, refused("ClientHello has no cipher suite")),
        (
            Sample { compression: vec![], ..good.clone() },
            refused("ClientHello lacks the null compression method"),
        ),
        (
            Sample { compression: vec![1], ..good.clone() },
            refused("ClientHello lacks the null compression method"),
        ),
        (
            Sample { extensions: Some(vec![0]), ..good.clone() },
            refused("extension has a wrong length"),
        ),
        (
            Sample { extensions: Some(vec![0, 0, 0, 1]), ..good },
            refused("extension has a wrong length"),
        ),
    ] {
        assert_eq!(scan(&sample.bytes()), want, "{sample:?}");
    }
}

#[test]
fn t23_truncated_and_trailing_bodies() {
    let body = Sample::named("a.test").body();
    let without_extensions = Sample::default().body().len();
    for cut in 0..body.len() {
        let got = scan(&records(&message(1, &body[..cut]), 16384));
        if cut == without_extensions {
            assert_eq!(got, nameless());
        } else {
            assert!(matches!(got, Scan::Malformed(_)), "{cut}: {got:?}");
        }
    }
    let trailing = message(1, &[body, vec![0]].concat());
    assert_eq!(scan(&records(&trailing, 16384)), refused("ClientHello has a wrong length inside"));
}

#[test]
fn t23_other_records_and_protocols() {
    let hello = Sample::named("a.test").message();
    for (bytes, want) in [
        // SSLv2 form, DTLS, other record types, other protocols.
        (vec![0x80, 0x2e, 0x01, 0x03, 0x01], Scan::NotMine),
        (vec![22, 0xfe, 0xfd, 0, 0], Scan::NotMine),
        (vec![22, 2, 0], Scan::NotMine),
        (vec![22, 4, 0], Scan::NotMine),
        (record(20, &[1]), Scan::NotMine),
        (record(21, &[2, 0]), Scan::NotMine),
        (record(23, &hello), Scan::NotMine),
        (b"GET / HTTP/1.1\r\n".to_vec(), Scan::NotMine),
        (vec![0], Scan::NotMine),
        // LIS-23: raw at the first byte that cannot be TLS.
        (vec![22], Scan::NeedMore),
        (vec![22, 3], Scan::NeedMore),
        (vec![22, 3, 5], refused("impossible record version")),
        (vec![22, 3, 0, 0x40, 0x01], refused("record is longer than 16 KiB")),
        (vec![22, 3, 0, 0x40, 0x00], Scan::NeedMore),
        // Other handshake messages first.
        (record(22, &[0]), refused("first handshake message is not a ClientHello")),
        (
            record(22, &message(2, &hello[4..])),
            refused("first handshake message is not a ClientHello"),
        ),
        (record(22, &[1, 0, 0, 0]), refused("ClientHello has a wrong length inside")),
    ] {
        assert_eq!(scan(&bytes), want, "{bytes:?}");
    }
}

#[test]
fn an_answer_stays() {
    let hello = Sample::named("a.test").bytes();
    let mut reader = Reader::default();
    assert_eq!(reader.push(&hello), names("a.test"));
    assert_eq!(reader.push(&Sample::named("b.test").bytes()), names("a.test"));
    let mut reader = Reader::default();
    assert_eq!(reader.push(b"G"), Scan::NotMine);
    assert_eq!(reader.push(&hello), Scan::NotMine);
}
