//! ClientHellos of every kind, honest and hostile, from a seed: the same seed makes the same ones.

/// Numbers that look random and are the same each time (xorshift64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // Zero would stay zero; neighbours would begin alike.
        Self((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1)
    }

    /// The next one below `limit`; 0 where that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap_or(0) % limit.max(1)
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    /// One of them.
    ///
    /// # Panics
    /// When there are none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }
}

/// A way of making a client's first bytes for a name.
pub type Make = fn(&mut Random, &str) -> Vec<u8>;

/// Hellos that name what they are asked to, in ways that real clients have.
pub const HONEST: [(&str, Make); 10] = [
    ("plain", |random, name| Hello::named(random, name).bytes()),
    ("upper case", |random, name| Hello::named(random, &name.to_ascii_uppercase()).bytes()),
    ("GREASE", |random, name| {
        let mut hello = Hello::named(random, name);
        hello.extensions.insert(0, (0x0a0a, vec![]));
        hello.extension(0xfafa, &[0]).bytes()
    }),
    ("ALPN", |random, name| Hello::named(random, name).extension(16, &ALPN).bytes()),
    ("post-quantum", |random, name| {
        let share = random.bytes(1216);
        Hello::named(random, name).extension(51, &share).bytes()
    }),
    ("padded", |random, name| {
        let padding = vec![0; random.below(6000)];
        Hello::named(random, name).extension(21, &padding).bytes()
    }),
    ("ECH", |random, name| {
        let outer = random.bytes(180);
        Hello::named(random, name).extension(0xfe0d, &outer).bytes()
    }),
    ("two records", |random, name| {
        let message = Hello::named(random, name).message();
        let first = 1 + random.below(message.len() - 1);
        [record(22, &message[..first]), record(22, &message[first..])].concat()
    }),
    ("records of one byte", |random, name| records(&Hello::named(random, name).message(), 1)),
    ("early data", |random, name| {
        let hello = Hello::named(random, name).extension(42, &[]).bytes();
        let data = random.bytes(50);
        [hello, record(20, &[1]), record(23, &data)].concat()
    }),
];

/// First bytes that must not pass where a name is asked for, or that are odd enough for readers to
/// differ about.
pub const HOSTILE: [(&str, Make); 34] = [
    ("truncated", |random, name| {
        let mut bytes = Hello::named(random, name).bytes();
        bytes.truncate(1 + random.below(bytes.len() - 1));
        bytes
    }),
    ("no server_name", |random, _| Hello::new(random).bytes()),
    ("an empty server_name", |random, _| Hello::new(random).extension(0, &[]).bytes()),
    ("an empty list of names", |random, _| Hello::new(random).extension(0, &[0, 0]).bytes()),
    ("an empty name", |random, _| Hello::named(random, "").bytes()),
    ("two server_name extensions", |random, name| {
        Hello::named(random, name).extension(0, &list(&[(0, "other.test")])).bytes()
    }),
    ("two server_name extensions, the other first", |random, name| {
        Hello::named(random, "other.test").extension(0, &list(&[(0, name)])).bytes()
    }),
    ("two names in a list", |random, name| {
        Hello::new(random).extension(0, &list(&[(0, name), (0, "other.test")])).bytes()
    }),
    ("an unknown name type first", |random, name| {
        Hello::new(random).extension(0, &list(&[(1, "other.test"), (0, name)])).bytes()
    }),
    ("an unknown name type", |random, name| {
        Hello::new(random).extension(0, &list(&[(7, name)])).bytes()
    }),
    ("another extension twice", |random, name| {
        Hello::named(random, name).extension(10, &[0]).extension(10, &[0]).bytes()
    }),
    ("a dot at the end", |random, name| Hello::named(random, &format!("{name}.")).bytes()),
    ("an empty label", |random, name| Hello::named(random, &format!("a..{name}")).bytes()),
    ("a label of 64", |random, name| {
        Hello::named(random, &format!("{}.{name}", "a".repeat(64))).bytes()
    }),
    ("a name of 254", |random, name| {
        let front = "a.".repeat(127);
        Hello::named(random, &format!("{}{name}", &front[..254 - name.len()])).bytes()
    }),
    ("a wildcard for a name", |random, name| Hello::named(random, &format!("*.{name}")).bytes()),
    ("a NUL in the name", |random, name| Hello::named(random, &format!("{name}\0.test")).bytes()),
    ("not ASCII", |random, name| Hello::named(random, &format!("\u{e9}.{name}")).bytes()),
    ("not UTF-8", |random, name| {
        let mut hello = Hello::new(random);
        let bad = [&[0xff], name.as_bytes()].concat();
        hello.extensions.push((0, vec16(&[&[0], &vec16(&bad)[..]].concat())));
        hello.bytes()
    }),
    ("an escape", |random, name| Hello::named(random, &name.replace('.', "%2e")).bytes()),
    ("a space", |random, name| Hello::named(random, &format!("{name} ")).bytes()),
    ("an IPv4 address", |random, _| Hello::named(random, "192.0.2.1").bytes()),
    ("an IPv6 address", |random, _| Hello::named(random, "[2001:db8::1]").bytes()),
    ("SSLv2", |random, name| {
        let rest = random.bytes(40);
        [&[0x80, 46, 1, 0, 2, 0, 21][..], &rest, name.as_bytes()].concat()
    }),
    ("a version that never was", |random, name| {
        let mut hello = Hello::named(random, name);
        hello.version = *random.pick(&[[3, 0], [2, 0], [3, 4], [3, 9], [4, 3]]);
        hello.bytes()
    }),
    ("a record version that never was", |random, name| {
        let mut bytes = Hello::named(random, name).bytes();
        bytes[1 + random.below(2)] = 7;
        bytes
    }),
    ("bytes behind the hello in its record", |random, name| {
        let message = Hello::named(random, name).message();
        record(22, &[&message[..], &[0; 3]].concat())
    }),
    ("bytes behind the hello", |random, name| {
        let hello = Hello::named(random, name).bytes();
        let behind = [record(23, &[1, 2]), record(20, &[1]), vec![0], record(22, &[1, 0])];
        [hello, random.pick(&behind).clone()].concat()
    }),
    ("an alert behind the hello", |random, name| {
        [Hello::named(random, name).bytes(), record(21, &[1, 0])].concat()
    }),
    ("a second hello", |random, name| {
        [Hello::named(random, name).bytes(), Hello::named(random, "other.test").bytes()].concat()
    }),
    ("a wrong length", |random, name| {
        let mut bytes = Hello::named(random, name).bytes();
        // Of the record, the message, the extensions or inside one.
        let at = *random.pick(&[4, 8, bytes.len() - name.len() - 1, bytes.len() - name.len() - 4]);
        bytes[at] = bytes[at].wrapping_add(*random.pick(&[1, 255, 2, 128]));
        bytes
    }),
    ("a malformed ALPN", |random, name| {
        let alpn =
            *random.pick(&[&[0, 3, 2, b'h'][..], &[0, 0], &[0, 1, 0], &[0, 3, 9, b'h', b'2']]);
        Hello::named(random, name).extension(16, alpn).bytes()
    }),
    ("other bytes than TLS", |random, _| {
        let others =
            [&b"SSH-2.0-x\r\n"[..], b"\x15\x03\x01\0\x02\x02\x28", b"\x16\xfe\xfd\0\0\0", b"\0"];
        random.pick(&others).to_vec()
    }),
    ("bytes changed", |random, name| {
        let mut bytes = Hello::named(random, name).bytes();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            bytes[at] = random.below(256) as u8;
        }
        bytes
    }),
];

const ALPN: [u8; 14] = *b"\0\x0c\x02h2\x08http/1.1";

/// A hello in parts.
struct Hello {
    version: [u8; 2],
    session: Vec<u8>,
    ciphers: Vec<u8>,
    extensions: Vec<(u16, Vec<u8>)>,
}

impl Hello {
    fn new(random: &mut Random) -> Self {
        let session = if random.percent(70) { random.bytes(32) } else { Vec::new() };
        let ciphers = 2 * (1 + random.below(20));
        let ciphers = random.bytes(ciphers);
        Self { version: [3, 3], session, ciphers, extensions: vec![(43, vec![2, 3, 4])] }
    }

    fn named(random: &mut Random, name: &str) -> Self {
        Self::new(random).extension(0, &list(&[(0, name)]))
    }

    fn extension(mut self, kind: u16, data: &[u8]) -> Self {
        self.extensions.push((kind, data.to_vec()));
        self
    }

    fn message(&self) -> Vec<u8> {
        let extensions = self
            .extensions
            .iter()
            .map(|(kind, data)| [&kind.to_be_bytes()[..], &vec16(data)].concat());
        let extensions: Vec<u8> = extensions.flatten().collect();
        let session = [&[self.session.len() as u8], &self.session[..]].concat();
        let parts = [&self.version[..], &[9; 32], &session, &vec16(&self.ciphers), &[1, 0]];
        let body = [parts.concat(), vec16(&extensions)].concat();
        let length = (body.len() as u32).to_be_bytes();
        [&[1], &length[1..], &body].concat()
    }

    fn bytes(&self) -> Vec<u8> {
        records(&self.message(), 1 << 14)
    }
}

/// The data of a `server_name` extension.
fn list(names: &[(u8, &str)]) -> Vec<u8> {
    let name = |(kind, name): &(u8, &str)| [&[*kind], &vec16(name.as_bytes())[..]].concat();
    vec16(&names.iter().flat_map(name).collect::<Vec<u8>>())
}

fn vec16(data: &[u8]) -> Vec<u8> {
    [&(data.len() as u16).to_be_bytes(), data].concat()
}

fn record(kind: u8, fragment: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1][..], &vec16(fragment)].concat()
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|fragment| record(22, fragment)).collect()
}
