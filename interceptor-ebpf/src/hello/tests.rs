use super::host::read_payload;
use super::{MARKS, MAX_MESSAGE, MAX_RECORDS, PIECE, Reading, body};

fn vec16(data: &[u8]) -> Vec<u8> {
    [&u16::try_from(data.len()).unwrap().to_be_bytes(), data].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vec16(data)].concat()
}

fn server_name(name: &[u8]) -> Vec<u8> {
    extension(0, &vec16(&[&[0], &vec16(name)[..]].concat()))
}

/// A hello's handshake message with these extensions.
fn message(extensions: &[u8]) -> Vec<u8> {
    let body =
        [&[3, 3][..], &[9; 32], &[2, 7, 7], &[0, 2, 0x13, 1], &[1, 0], &vec16(extensions)].concat();
    let len = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1], &len[1..], &body].concat()
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[22, 3, 1][..], &vec16(part)].concat();
    message.chunks(size).flat_map(record).collect()
}

fn named(name: &str) -> (Reading, Option<Vec<u8>>) {
    (Reading::Named(name.len()), Some(name.as_bytes().to_vec()))
}

#[test]
fn t_17_a_hello_in_records_of_any_size_and_every_part_of_it() {
    let message = message(&server_name(b"A.example.COM"));
    for size in [1, 2, 3, 7, 16, 100, 4096] {
        let payload = records(&message, size);
        assert!(message.len() / size < MAX_RECORDS);
        assert_eq!(read_payload(&payload), named("a.example.com"), "{size}");
        for end in 1..payload.len() {
            assert_eq!(read_payload(&payload[..end]).0, Reading::NeedMore, "{size} {end}");
        }
    }
}

#[test]
fn t_18_what_is_too_long_is_unclear_at_once() {
    let padded = |len: usize| {
        let name = server_name(b"a.example.com");
        let rest = len - message(&name).len() - 4;
        message(&[name, extension(21, &vec![0; rest])].concat())
    };
    for size in [1 << 14, 5000, PIECE, PIECE - 1, 100, 33] {
        let longest = records(&padded(MAX_MESSAGE), size);
        assert_eq!(read_payload(&longest), named("a.example.com"), "{size}");
        for end in (1..longest.len()).step_by(331) {
            assert_eq!(read_payload(&longest[..end]).0, Reading::NeedMore, "{size} {end}");
        }
    }
    let long = records(&padded(MAX_MESSAGE + 1), 1 << 14);
    assert_eq!(read_payload(&long).0, Reading::Unclear);
    assert_eq!(read_payload(&long[..8]).0, Reading::NeedMore);
    assert_eq!(read_payload(&long[..9]).0, Reading::Unclear);
    let many = records(&padded(MAX_RECORDS + 1), 1);
    assert_eq!(read_payload(&many).0, Reading::Unclear);
}

#[test]
fn t_19_two_names_and_what_follows_a_hello_are_unclear() {
    let name = server_name(b"a.example.com");
    let twice = message(&[name.clone(), name.clone()].concat());
    assert_eq!(read_payload(&records(&twice, 4096)).0, Reading::Unclear);
    let two = extension(0, &vec16(b"\0\0\x01a\0\0\x01b"));
    assert_eq!(read_payload(&records(&message(&two), 4096)).0, Reading::Unclear);
    let hello = records(&message(&name), 4096);
    for behind in [&hello[..], &[23, 3, 3, 0, 1, 0], &[21, 3, 3, 0, 2, 1, 0], &[0]] {
        assert_eq!(read_payload(&[&hello, behind].concat()).0, Reading::Unclear, "{behind:?}");
    }
    let early = records(&message(&[name, extension(42, &[])].concat()), 4096);
    let (change, data) = ([20, 3, 3, 0, 1, 1], [23, 3, 3, 0, 3, 1, 2, 3]);
    for (behind, reading) in [
        (&data[..], Reading::Named(13)),
        (&[&change[..], &data].concat(), Reading::Named(13)),
        (&data[..7], Reading::Named(13)),
        (&data[..3], Reading::Unclear),
        (&hello, Reading::Unclear),
    ] {
        assert_eq!(read_payload(&[&early, behind].concat()).0, reading, "{behind:?}");
    }
}

#[test]
fn t_20_names() {
    let long =
        format!("{}.{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61));
    for name in ["a", "a-b_c.D1", "a.b", &long] {
        let hello = records(&message(&server_name(name.as_bytes())), 4096);
        assert_eq!(read_payload(&hello), named(&name.to_ascii_lowercase()), "{name}");
    }
    let labels = format!("a.{}.test", "b".repeat(64));
    for name in [
        ".",
        "..",
        "a.b.",
        "a..b",
        ".a",
        "a.b..",
        // HTTP-5.
        "a.b.",
        "a b",
        "a/b",
        "a@b",
        "a:1",
        "a\0b",
        "\u{e9}.test",
        "*.a",
        "a%2eb",
        &labels,
        &format!("{long}e"),
        &format!("{long}."),
    ] {
        let hello = records(&message(&server_name(name.as_bytes())), 4096);
        assert_eq!(read_payload(&hello).0, Reading::Unclear, "{name:?}");
    }
}

#[test]
fn t_21_no_name() {
    for extensions in [
        vec![],
        extension(0, &[]),
        extension(0, &[0, 0]),
        extension(0, &[0, 3, 0, 0, 0]),
        extension(10, &[0, 2, 0, 29]),
    ] {
        let hello = records(&message(&extensions), 4096);
        assert_eq!(read_payload(&hello).0, Reading::NoName, "{extensions:?}");
    }
}

#[test]
fn t_23_and_t_27_other_first_bytes() {
    for (payload, reading) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], Reading::NotTls),
        (b"SSH-2.0-x\r\n", Reading::NotTls),
        (&[0x80, 46, 1, 0, 2], Reading::NotTls),
        (&[21, 3, 1, 0, 2, 2, 40], Reading::NotTls),
        (&[22, 254, 253, 0, 0, 0], Reading::NotTls),
        (&[22, 3, 5, 0, 4, 1, 0, 0, 0], Reading::Unclear),
        (&[22, 3, 1, 0, 0, 22], Reading::Unclear),
        (&[22, 3, 1, 0x40, 1, 1], Reading::Unclear),
        (&[22, 3, 1, 0, 4, 2, 0, 0, 0], Reading::Unclear),
    ] {
        assert_eq!(read_payload(payload).0, reading, "{payload:?}");
    }
}

/// Extensions that clients send together have marks of their own.
#[test]
fn slots_of_extensions_in_use_do_not_meet() {
    let grease = (0..16).map(|n| n * 0x1010 + 0x0a0a);
    let known = (0..64).chain(grease).chain([0x3374, 0x4469, 0x44cd, 0x7550, 0xfe0d, 0xff01]);
    let mut used = vec![None; MARKS];
    for kind in known {
        let slot = body::slot(kind);
        assert_eq!(used[slot].replace(kind), None, "{kind:#x}");
    }
}
