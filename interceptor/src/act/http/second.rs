//! A second reader of HTTP/1.1, to compare with: a library reads heads and chunk sizes, and where a
//! message ends (RFC 9112 section 6.3) is written down once more, sharing no code with the first.

use httparse::{EMPTY_HEADER, Status, parse_chunk_size, parse_headers};

/// More than any head has that is read here.
const FIELDS: usize = 256;

/// A request or an answer.
#[derive(Debug)]
pub(super) struct Message {
    /// Method and target; of an answer, its status and nothing.
    pub(super) start: (String, String),
    /// 1 in HTTP/1.1.
    pub(super) minor: u8,
    /// In lower case, with values as they are.
    pub(super) fields: Vec<(String, Vec<u8>)>,
    /// The names of its trailers, likewise.
    pub(super) trailers: Vec<String>,
    /// How many bytes its head takes.
    pub(super) head: usize,
    /// How many bytes it takes, as far as it came.
    pub(super) length: usize,
    /// Its body, as far as it came.
    pub(super) body: Vec<u8>,
    /// All of it came.
    pub(super) whole: bool,
}

impl Message {
    /// The values of a field.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |(known, _)| known == name).map(|(_, value)| &value[..])
    }
}

/// The requests in `bytes`, one behind the other; the last may lack its end, but not its head.
pub(super) fn requests(bytes: &[u8]) -> Result<Vec<Message>, String> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let mut fields = [EMPTY_HEADER; FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        let head = match request.parse(&bytes[at..]) {
            Ok(Status::Complete(head)) => head,
            Ok(Status::Partial) => return Err("a head without its end".into()),
            Err(error) => return Err(format!("a head: {error}")),
        };
        let start = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
        let message = message(start, request.version, request.headers, head, &bytes[at..], false)?;
        at += message.length;
        let tunnel = message.start.0 == "CONNECT";
        found.push(message);
        if tunnel {
            break;
        }
    }
    Ok(found)
}

/// The answers in `bytes` to requests of these methods, likewise.
pub(super) fn answers(bytes: &[u8], methods: &[&str]) -> Result<Vec<Message>, String> {
    let (mut found, mut at, mut methods) = (Vec::new(), 0, methods.iter());
    while at < bytes.len() {
        let mut fields = [EMPTY_HEADER; FIELDS];
        let mut answer = httparse::Response::new(&mut fields);
        let head = match answer.parse(&bytes[at..]) {
            Ok(Status::Complete(head)) => head,
            Ok(Status::Partial) => return Err("a head without its end".into()),
            Err(error) => return Err(format!("a head: {error}")),
        };
        let status = answer.code.unwrap_or_default();
        let interim = (100..200).contains(&status);
        let method = if interim { "" } else { methods.next().ok_or("an answer to nothing")? };
        let bodiless = interim || method == "HEAD" || [204, 304].contains(&status);
        let start = (status.to_string(), String::new());
        let start = (start.0.as_str(), start.1.as_str());
        let mut read = message(start, answer.version, answer.headers, head, &bytes[at..], true)?;
        if bodiless {
            (read.length, read.body, read.whole) = (head, Vec::new(), true);
        }
        at += read.length;
        found.push(read);
    }
    Ok(found)
}

/// `until_end`: without any framing it lasts as long as the connection.
fn message(
    start: (&str, &str),
    version: Option<u8>,
    fields: &[httparse::Header<'_>],
    head: usize,
    bytes: &[u8],
    until_end: bool,
) -> Result<Message, String> {
    let name = |field: &httparse::Header<'_>| field.name.to_ascii_lowercase();
    let mut message = Message {
        start: (start.0.to_owned(), start.1.to_owned()),
        minor: version.unwrap_or_default(),
        fields: fields.iter().map(|field| (name(field), field.value.to_vec())).collect(),
        trailers: Vec::new(),
        head,
        length: head,
        body: Vec::new(),
        whole: true,
    };
    let codings: Vec<_> = message.all("transfer-encoding").collect();
    let lengths: Vec<_> = message.all("content-length").collect();
    match (codings.as_slice(), lengths.as_slice()) {
        ([], []) if until_end => {
            message.body = bytes[head..].to_vec();
            message.length = bytes.len();
        }
        ([], []) => {}
        ([], [length]) => {
            let length = str::from_utf8(length).ok().and_then(|text| text.parse::<usize>().ok());
            let length = length.ok_or("a Content-Length that is no number")?;
            message.body = bytes[head..bytes.len().min(head.saturating_add(length))].to_vec();
            message.whole = message.body.len() == length;
            message.length += message.body.len();
        }
        ([coding], []) if coding.eq_ignore_ascii_case(b"chunked") => {
            message.chunks(&bytes[head..])?;
        }
        _ => return Err("framing in two ways".into()),
    }
    Ok(message)
}

impl Message {
    /// Reads chunks and trailers from the front of `bytes` (RFC 9112 section 7.1).
    fn chunks(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut at = 0;
        self.whole = false;
        self.length += bytes.len();
        loop {
            let (line, size) = match parse_chunk_size(&bytes[at..]) {
                Ok(Status::Complete(read)) => read,
                Ok(Status::Partial) => return Ok(()),
                Err(_) => return Err("a chunk's size".into()),
            };
            at += line;
            if size == 0 {
                break;
            }
            let size = usize::try_from(size).map_err(|_| "a chunk's size")?;
            let end = bytes.len().min(at.saturating_add(size));
            self.body.extend_from_slice(&bytes[at..end]);
            at = end;
            match &bytes[end..] {
                [b'\r', b'\n', ..] => at += 2,
                [] | [b'\r'] => return Ok(()),
                _ => return Err("a chunk's end".into()),
            }
        }
        let mut fields = [EMPTY_HEADER; FIELDS];
        match parse_headers(&bytes[at..], &mut fields) {
            Ok(Status::Complete((read, trailers))) => {
                self.trailers = trailers.iter().map(|t| t.name.to_ascii_lowercase()).collect();
                self.length -= bytes.len() - at - read;
                self.whole = true;
                Ok(())
            }
            Ok(Status::Partial) => Ok(()),
            Err(error) => Err(format!("trailers: {error}")),
        }
    }
}
