//! HTTP/1.1 requests, parsed as their bytes arrive.
//!
//! Owns framing (head, Content-Length, chunked) and routes. Invariant: no byte is searched twice,
//! however the request is cut into reads, and head and body are bounded.
//!
//! | state | input | next |
//! |---|---|---|
//! | head | blank line found | sized body or chunked body |
//! | sized body | all bytes there | request, then head |
//! | chunked body | last chunk and trailer there | request, then head |
//!
//! # Source
//! RFC 9112, sections 2 (message), 6 (body) and 7.1 (chunked).

use std::hash::{DefaultHasher, Hash, Hasher};

use memchr::{memchr, memmem};

/// Largest request head.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Largest request body.
pub const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest line that gives a chunk's size, extensions included.
const CHUNK_LINE_BYTES_MAX: usize = 1024;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `POST /v1/chat/completions`.
    Chat,
    /// `GET /v1/models`.
    Models,
    /// `GET /stats`.
    Stats,
    /// Anything else.
    Unknown,
}

/// One whole request.
#[derive(Debug)]
pub struct Request<'a> {
    /// What it asks for.
    pub route: Route,
    /// Whether the connection stays open after the answer.
    pub keep_alive: bool,
    /// A hash of the key that it was made with.
    pub key: u64,
    /// Its body, unchunked.
    pub body: &'a [u8],
    /// How many bytes of the input it took.
    pub consumed: usize,
}

/// Why a request cannot be read: the text of a 400 answer.
pub type Refusal = &'static str;

#[derive(Clone, Copy)]
struct Head {
    route: Route,
    keep_alive: bool,
    key: u64,
    bytes: usize,
    body: Body,
}

#[derive(Clone, Copy)]
enum Body {
    Sized(usize),
    Chunked,
}

/// The state of the request that is being read.
#[derive(Default)]
pub struct Parser {
    /// Input below this holds no blank line (head) or is unchunked already (chunked body).
    cursor: usize,
    head: Option<Head>,
    unchunked: Vec<u8>,
}

impl Parser {
    /// Looks for one whole request at the start of `input`, which may only grow between calls.
    /// After a request, take `consumed` bytes away and call `reset`.
    ///
    /// # Errors
    /// The text of a 400 answer; the connection cannot be used afterwards.
    pub fn advance<'a>(&'a mut self, input: &'a [u8]) -> Result<Option<Request<'a>>, Refusal> {
        let head = match self.head {
            Some(head) => head,
            None => match self.find_head(input)? {
                Some(head) => head,
                None => return Ok(None),
            },
        };
        let (body, consumed) = match head.body {
            Body::Sized(length) => match input.get(head.bytes..head.bytes + length) {
                Some(body) => (body, head.bytes + length),
                None => return Ok(None),
            },
            Body::Chunked => match self.unchunk(input)? {
                Some(consumed) => (self.unchunked.as_slice(), consumed),
                None => return Ok(None),
            },
        };
        let Head { route, keep_alive, key, .. } = head;
        Ok(Some(Request { route, keep_alive, key, body, consumed }))
    }

    /// Makes the parser ready for the next request.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    fn find_head(&mut self, input: &[u8]) -> Result<Option<Head>, Refusal> {
        // The blank line may straddle two reads, so the search steps back by three bytes.
        let from = self.cursor.saturating_sub(3);
        let Some(at) = memmem::find(&input[from..], b"\r\n\r\n") else {
            if input.len() > HEAD_BYTES_MAX {
                return Err("request head is over 65536 bytes");
            }
            self.cursor = input.len();
            return Ok(None);
        };
        let head = read_head(&input[..from + at], from + at + 4)?;
        self.cursor = head.bytes;
        self.head = Some(head);
        Ok(Some(head))
    }

    /// Unchunks what is there; gives the end of the request once the last chunk is in.
    fn unchunk(&mut self, input: &[u8]) -> Result<Option<usize>, Refusal> {
        loop {
            let rest = &input[self.cursor..];
            let Some(newline) = memchr(b'\n', rest) else {
                if rest.len() > CHUNK_LINE_BYTES_MAX {
                    return Err("chunk line is over 1024 bytes");
                }
                return Ok(None);
            };
            let size = chunk_size(&rest[..newline])?;
            let start = newline + 1;
            if size == 0 {
                return end_of_trailer(&rest[start..])
                    .map(|end| end.map(|end| self.cursor + start + end));
            }
            if self.unchunked.len() + size > BODY_BYTES_MAX {
                return Err("request body is over 67108864 bytes");
            }
            let Some(chunk) = rest.get(start..start + size + 2) else {
                return Ok(None);
            };
            let Some(data) = chunk.strip_suffix(b"\r\n") else {
                return Err("chunk does not end where its size says");
            };
            self.unchunked.extend_from_slice(data);
            self.cursor += start + size + 2;
        }
    }
}

fn read_head(head: &[u8], bytes: usize) -> Result<Head, Refusal> {
    let mut lines = head.split(|&b| b == b'\n').map(<[u8]>::trim_ascii);
    let mut words = lines.next().unwrap_or_default().split(|&b| b == b' ');
    let (method, path, version) = (words.next(), words.next(), words.next());
    let mut keep_alive = match version {
        Some(b"HTTP/1.1") => true,
        Some(b"HTTP/1.0") => false,
        _ => return Err("request line is not `METHOD PATH HTTP/1.1`"),
    };
    let (mut body, mut key) = (Body::Sized(0), 0);
    for line in lines {
        let Some(colon) = memchr(b':', line) else {
            return Err("header line has no colon");
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            body = Body::Sized(content_length(value)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err("transfer encoding is not `chunked`");
            }
            body = Body::Chunked;
        } else if name.eq_ignore_ascii_case(b"authorization") {
            let mut hasher = DefaultHasher::new();
            value.hash(&mut hasher);
            key = hasher.finish();
        } else if name.eq_ignore_ascii_case(b"connection") {
            keep_alive = !value.eq_ignore_ascii_case(b"close") && keep_alive;
        }
    }
    Ok(Head {
        route: route(method.unwrap_or_default(), path.unwrap_or_default()),
        keep_alive,
        key,
        bytes,
        body,
    })
}

fn route(method: &[u8], path: &[u8]) -> Route {
    match (method, path) {
        (b"POST", b"/v1/chat/completions") => Route::Chat,
        (b"GET", b"/v1/models") => Route::Models,
        (b"GET", b"/stats") => Route::Stats,
        _ => Route::Unknown,
    }
}

fn content_length(value: &[u8]) -> Result<usize, Refusal> {
    let text = str::from_utf8(value).unwrap_or_default();
    match text.parse() {
        Ok(length) if length <= BODY_BYTES_MAX => Ok(length),
        Ok(_) => Err("request body is over 67108864 bytes"),
        Err(_) => Err("content length is not a whole number"),
    }
}

fn chunk_size(line: &[u8]) -> Result<usize, Refusal> {
    let size = line.split(|&b| b == b';').next().unwrap_or_default();
    let text = str::from_utf8(size.trim_ascii()).unwrap_or_default();
    match usize::from_str_radix(text, 16) {
        Ok(size) if size <= BODY_BYTES_MAX => Ok(size),
        Ok(_) => Err("request body is over 67108864 bytes"),
        Err(_) => Err("chunk size is not a hexadecimal number"),
    }
}

/// Trailer lines are passed over; the request ends after the empty one.
fn end_of_trailer(rest: &[u8]) -> Result<Option<usize>, Refusal> {
    if rest.starts_with(b"\r\n") {
        return Ok(Some(2));
    }
    if rest.len() > HEAD_BYTES_MAX {
        return Err("request trailer is over 65536 bytes");
    }
    Ok(memmem::find(rest, b"\r\n\r\n").map(|at| at + 4))
}
