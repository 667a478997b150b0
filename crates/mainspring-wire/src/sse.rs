//! Server-sent events out of bytes, however the network cut them.
//!
//! Only `data` matters to model servers; `event`, `id` and `retry` are read over. An event whose
//! bytes came in one piece is handed on without a copy.
//!
//! # Source
//! WHATWG HTML, section 9.2.6, "Interpreting an event stream".

use memchr::memchr2;

/// An event grew past the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a server-sent event is longer than {bytes_max} bytes")]
pub struct SseTooLong {
    /// The limit.
    pub bytes_max: usize,
}

/// Splits a byte stream into the data of its events.
///
/// After each `push`, `line` holds a line whose end has not come yet and `data` the complete lines
/// of an event whose end has not come yet.
#[derive(Debug)]
pub struct SseParser {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a carriage return: a line feed now belongs to it.
    after_return: bool,
    at_start: bool,
    bytes_max: usize,
}

impl SseParser {
    /// A parser that refuses events of more than `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            line: Vec::new(),
            data: Vec::new(),
            has_data: false,
            after_return: false,
            at_start: true,
            bytes_max,
        }
    }

    /// Takes the next bytes and hands on the data of each event that they complete.
    ///
    /// # Errors
    /// [`SseTooLong`] past the limit, or the first error of `on_event`; the parser is of no further
    /// use then.
    pub fn push<E: From<SseTooLong>>(
        &mut self,
        bytes: &[u8],
        on_event: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = bytes;
        // The value of a first data line, not yet copied.
        let mut borrowed: Option<&[u8]> = None;
        while !rest.is_empty() {
            if self.after_return {
                self.after_return = false;
                if rest[0] == b'\n' {
                    rest = &rest[1..];
                    continue;
                }
            }
            let Some(end) = memchr2(b'\n', b'\r', rest) else {
                self.check(self.line.len() + rest.len())?;
                self.line.extend_from_slice(rest);
                break;
            };
            // Whole lines are bounded like pieces of lines, so that a cut changes nothing.
            self.check(self.line.len() + end)?;
            self.after_return = rest[end] == b'\r';
            let line = &rest[..end];
            rest = &rest[end + 1..];
            if self.line.is_empty() {
                let line = self.without_mark(line);
                if line.is_empty() {
                    self.dispatch(borrowed.take(), on_event)?;
                } else if let Some(value) = data_of(line) {
                    if self.has_data || borrowed.is_some() {
                        self.keep(borrowed.take())?;
                        self.keep(Some(value))?;
                    } else {
                        borrowed = Some(value);
                    }
                }
            } else {
                self.keep(borrowed.take())?;
                self.end_split_line(line)?;
            }
        }
        self.keep(borrowed)?;
        Ok(())
    }

    /// Takes the end of the stream: what is left of an event that no blank line ended, if anything.
    #[must_use]
    pub fn finish(mut self) -> Option<Vec<u8>> {
        // The limit bounds the line already, so nothing can be refused here.
        let _ = self.end_split_line(b"");
        self.has_data.then_some(self.data)
    }

    fn end_split_line(&mut self, tail: &[u8]) -> Result<(), SseTooLong> {
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(tail);
        let kept = data_of(self.without_mark(&line)).map(<[u8]>::to_vec);
        self.keep(kept.as_deref())?;
        line.clear();
        self.line = line;
        Ok(())
    }

    /// The line without the byte order mark that a stream may begin with.
    fn without_mark<'a>(&mut self, line: &'a [u8]) -> &'a [u8] {
        let is_first = std::mem::replace(&mut self.at_start, false);
        if is_first { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line }
    }

    fn keep(&mut self, value: Option<&[u8]>) -> Result<(), SseTooLong> {
        let Some(value) = value else { return Ok(()) };
        self.check(self.data.len() + value.len() + 1)?;
        if self.has_data {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value);
        self.has_data = true;
        Ok(())
    }

    fn dispatch<E: From<SseTooLong>>(
        &mut self,
        borrowed: Option<&[u8]>,
        on_event: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Some(value) = borrowed {
            self.check(value.len())?;
            return on_event(value);
        }
        if self.has_data {
            self.has_data = false;
            on_event(&self.data)?;
            self.data.clear();
        }
        Ok(())
    }

    fn check(&self, bytes: usize) -> Result<(), SseTooLong> {
        if bytes > self.bytes_max {
            return Err(SseTooLong { bytes_max: self.bytes_max });
        }
        Ok(())
    }
}

/// The value of a `data` line; none for comments and other fields.
fn data_of(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_prefix(b"data")?;
    match rest.split_first() {
        None => Some(b""),
        Some((b':', value)) => Some(value.strip_prefix(b" ").unwrap_or(value)),
        Some(_) => None,
    }
}
