//! Answers, written as bytes into a connection's output.
//!
//! Owns every text the server sends. Invariant: no two tool calls of a process share an id, and
//! no two texts that follow each other are alike, so that a client gains nothing from repetition.
//!
//! # Source
//! OpenAI API reference, "Create chat completion" and "The chat completion chunk object".

use memchr::memmem::Finder;

use crate::options::Options;
use crate::trouble::Spoiled;

/// How many different texts there are for one length.
const TEXT_COUNT: usize = 4096;
const CREATED: &str = "\"created\":1700000000,\"model\":\"bench\"";

/// What a chat request asks for, as far as this server cares.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Whether the answer is a stream of events.
    pub stream: bool,
    /// Whether the answer calls tools rather than ends the conversation.
    pub calls_tools: bool,
    usage: bool,
    prompt_tokens: usize,
}

/// A streamed answer's place.
#[derive(Clone, Copy, Debug)]
pub struct Streamed {
    answer: u64,
    token_idx: usize,
}

/// Writes answers.
pub struct Renderer {
    options: Options,
    answer_count: u64,
    call_count: u64,
    filler: Vec<u8>,
    body: Vec<u8>,
    assistant: Finder<'static>,
    stream: Finder<'static>,
    include_usage: Finder<'static>,
}

impl Renderer {
    /// A renderer for these options.
    pub fn new(options: Options) -> Self {
        let chars = options.argument_chars.max(options.answer_chars) + TEXT_COUNT;
        Self {
            options,
            answer_count: 0,
            call_count: 0,
            filler: filler(chars),
            body: Vec::new(),
            assistant: Finder::new(b"\"assistant\""),
            stream: Finder::new(b"\"stream\""),
            include_usage: Finder::new(b"\"include_usage\""),
        }
    }

    /// Reads what matters from a chat request's body: how often the model has spoken, and whether
    /// it is to stream. Quotes inside a JSON string are escaped, so its text cannot match.
    pub fn plan(&self, body: &[u8]) -> Plan {
        let spoken = self.assistant.find_iter(body);
        let spoken_count = spoken.filter(|&at| is_role(&body[..at])).count();
        let is_true = |finder: &Finder<'_>| {
            let mut ends = finder.find_iter(body).map(|at| at + finder.needle().len());
            ends.any(|end| value_is_true(&body[end..]))
        };
        let stream = is_true(&self.stream);
        Plan {
            stream,
            calls_tools: spoken_count < self.options.tool_turns,
            usage: stream && is_true(&self.include_usage),
            prompt_tokens: body.len() / 4,
        }
    }

    /// Writes a whole answer.
    pub fn chat(&mut self, plan: &Plan, out: &mut Vec<u8>) {
        if plan.stream {
            let mut streamed = self.stream_start(plan, out);
            while self.stream_piece(plan, &mut streamed, out) {}
            return;
        }
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        self.completion(plan, &mut body);
        with_length(out, "200 OK", &body);
        self.body = body;
    }

    /// Writes a stream's head and first event.
    pub fn stream_start(&mut self, plan: &Plan, out: &mut Vec<u8>) -> Streamed {
        self.answer_count += 1;
        let answer = self.answer_count;
        text(
            out,
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        );
        event(answer, out, |out| {
            text(out, "{\"role\":\"assistant\",\"content\":");
            let content = if plan.calls_tools { "null}" } else { "\"\"}" };
            text(out, content);
        });
        Streamed { answer, token_idx: 0 }
    }

    /// Writes a stream's next piece; false after the last one, when the stream is complete.
    pub fn stream_piece(&mut self, plan: &Plan, at: &mut Streamed, out: &mut Vec<u8>) -> bool {
        if plan.calls_tools {
            for idx in 0..self.options.tools_per_turn {
                self.call_events(at.answer, idx, out);
            }
            self.stream_end(plan, at.answer, out);
            return false;
        }
        if at.token_idx == self.options.answer_tokens {
            self.stream_end(plan, at.answer, out);
            return false;
        }
        let (chars, count) = (self.options.answer_chars, self.options.answer_tokens);
        let (from, to) = (chars * at.token_idx / count, chars * (at.token_idx + 1) / count);
        let piece = &self.text_at(at.answer, chars)[from..to];
        event(at.answer, out, |out| {
            text(out, "{\"content\":\"");
            out.extend_from_slice(piece);
            text(out, "\"}");
        });
        at.token_idx += 1;
        true
    }

    /// Writes an answer with further header lines, each with its line break.
    pub fn chat_with(&mut self, plan: &Plan, lines: &str, out: &mut Vec<u8>) {
        let from = out.len();
        self.chat(plan, out);
        let status_end = out[from..].iter().position(|&b| b == b'\n');
        let at = from + status_end.expect("an answer begins with a status line") + 1;
        out.splice(at..at, lines.bytes());
    }

    /// Writes an answer that is none; the connection is to be closed after half of one.
    pub fn spoiled(&mut self, plan: &Plan, spoiled: &Spoiled, out: &mut Vec<u8>) {
        match spoiled {
            Spoiled::Refused(status, lines) => {
                let body = "{\"error\":{\"message\":\"not now\",\"type\":\"fault\"}}";
                text(out, "HTTP/1.1 ");
                text(out, status);
                text(out, "\r\ncontent-type: application/json\r\n");
                text(out, lines);
                text(out, "content-length: ");
                number(out, body.len() as u64);
                text(out, "\r\n\r\n");
                text(out, body);
            }
            Spoiled::Hang => {}
            Spoiled::Cut => {
                let from = out.len();
                self.chat(plan, out);
                out.truncate(from + (out.len() - from) * 3 / 4);
            }
            Spoiled::Garbage => with_length(out, "200 OK", b"{\"choices\":[{\"message\":{"),
        }
    }

    /// Writes an answer with a JSON body.
    pub fn json(&self, status: &str, body: &str, out: &mut Vec<u8>) {
        with_length(out, status, body.as_bytes());
    }

    fn completion(&mut self, plan: &Plan, out: &mut Vec<u8>) {
        self.answer_count += 1;
        text(out, "{\"id\":\"chatcmpl-");
        number(out, self.answer_count);
        text(out, "\",\"object\":\"chat.completion\",");
        text(out, CREATED);
        text(out, ",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":");
        if plan.calls_tools {
            text(out, "null,\"tool_calls\":[");
            for idx in 0..self.options.tools_per_turn {
                text(out, if idx == 0 { "" } else { "," });
                self.call(out);
            }
            text(out, "]},\"logprobs\":null,\"finish_reason\":\"tool_calls\"}],");
        } else {
            text(out, "\"");
            out.extend_from_slice(self.text_at(self.answer_count, self.options.answer_chars));
            text(out, "\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],");
        }
        self.usage(plan, out);
        text(out, "}");
    }

    fn call(&mut self, out: &mut Vec<u8>) {
        self.call_count += 1;
        text(out, "{\"id\":\"call_");
        number(out, self.call_count);
        text(out, "\",\"type\":\"function\",\"function\":{\"name\":\"");
        text(out, &self.options.tool_name);
        text(out, "\",\"arguments\":\"{\\\"text\\\":\\\"");
        out.extend_from_slice(self.text_at(self.call_count, self.options.argument_chars));
        text(out, "\\\"}\"}}");
    }

    /// A streamed call comes in three pieces, as a client must join them.
    fn call_events(&mut self, answer: u64, idx: usize, out: &mut Vec<u8>) {
        self.call_count += 1;
        let id = self.call_count;
        let delta = |out: &mut Vec<u8>| {
            text(out, "{\"tool_calls\":[{\"index\":");
            number(out, idx as u64);
        };
        event(answer, out, |out| {
            delta(out);
            text(out, ",\"id\":\"call_");
            number(out, id);
            text(out, "\",\"type\":\"function\",\"function\":{\"name\":\"");
            text(out, &self.options.tool_name);
            text(out, "\",\"arguments\":\"\"}}]}");
        });
        event(answer, out, |out| {
            delta(out);
            text(out, ",\"function\":{\"arguments\":\"{\\\"text\\\":\\\"\"}}]}");
        });
        let argument = self.text_at(id, self.options.argument_chars);
        event(answer, out, |out| {
            delta(out);
            text(out, ",\"function\":{\"arguments\":\"");
            out.extend_from_slice(argument);
            text(out, "\\\"}\"}}]}");
        });
    }

    fn stream_end(&self, plan: &Plan, answer: u64, out: &mut Vec<u8>) {
        let reason = if plan.calls_tools { "tool_calls" } else { "stop" };
        chunk(out, |out| {
            chunk_head(answer, out);
            text(out, "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"");
            text(out, reason);
            text(out, "\"}]}\n\n");
        });
        if plan.usage {
            chunk(out, |out| {
                chunk_head(answer, out);
                text(out, "\"choices\":[],");
                self.usage(plan, out);
                text(out, "}\n\n");
            });
        }
        chunk(out, |out| text(out, "data: [DONE]\n\n"));
        text(out, "0\r\n\r\n");
    }

    fn usage(&self, plan: &Plan, out: &mut Vec<u8>) {
        let completion_tokens = if plan.calls_tools {
            self.options.tools_per_turn * (8 + self.options.argument_chars / 4)
        } else {
            self.options.answer_tokens
        };
        text(out, "\"usage\":{\"prompt_tokens\":");
        number(out, plan.prompt_tokens as u64);
        text(out, ",\"completion_tokens\":");
        number(out, completion_tokens as u64);
        text(out, ",\"total_tokens\":");
        number(out, (plan.prompt_tokens + completion_tokens) as u64);
        text(out, "}");
    }

    fn text_at(&self, id: u64, chars: usize) -> &[u8] {
        // 1,237 is odd, so that the offsets pass through all TEXT_COUNT places before one returns.
        let from = (id as usize).wrapping_mul(1237) % TEXT_COUNT;
        &self.filler[from..from + chars]
    }
}

/// Whether the value that starts after `before` is the one of the key `role`.
fn is_role(before: &[u8]) -> bool {
    let Some(key) = before.trim_ascii_end().strip_suffix(b":") else {
        return false;
    };
    key.trim_ascii_end().ends_with(b"\"role\"")
}

/// Whether `after`, which follows a key, goes on with the value `true`.
fn value_is_true(after: &[u8]) -> bool {
    let Some(value) = after.trim_ascii_start().strip_prefix(b":") else {
        return false;
    };
    value.trim_ascii_start().starts_with(b"true")
}

/// Letters and spaces without a pattern that a compressor could find; needs no JSON escape.
fn filler(chars: usize) -> Vec<u8> {
    let mut state: u64 = 0x2545_f491_4f6c_dd1d;
    let mut next = || {
        // Source: xorshift64, G. Marsaglia, "Xorshift RNGs", 2003.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let alphabet = b"abcdefghijklmnopqrstuvwxyz     ";
    let letters = alphabet.len() as u64;
    (0..chars).map(|_| alphabet[(next() % letters) as usize]).collect()
}

fn with_length(out: &mut Vec<u8>, status: &str, body: &[u8]) {
    text(out, "HTTP/1.1 ");
    text(out, status);
    text(out, "\r\ncontent-type: application/json\r\ncontent-length: ");
    number(out, body.len() as u64);
    text(out, "\r\n\r\n");
    out.extend_from_slice(body);
}

/// One event with a delta, in an HTTP chunk of its own, as model servers send it.
fn event(answer: u64, out: &mut Vec<u8>, delta: impl FnOnce(&mut Vec<u8>)) {
    chunk(out, |out| {
        chunk_head(answer, out);
        text(out, "\"choices\":[{\"index\":0,\"delta\":");
        delta(out);
        text(out, ",\"finish_reason\":null}]}\n\n");
    });
}

fn chunk_head(answer: u64, out: &mut Vec<u8>) {
    text(out, "data: {\"id\":\"chatcmpl-");
    number(out, answer);
    text(out, "\",\"object\":\"chat.completion.chunk\",");
    text(out, CREATED);
    text(out, ",");
}

/// The size is written afterwards into six digits, enough for the longest text that is allowed.
fn chunk(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let size_at = out.len();
    text(out, "000000\r\n");
    let from = out.len();
    write(out);
    let mut size = out.len() - from;
    for digit in out[size_at..size_at + 6].iter_mut().rev() {
        *digit = b"0123456789abcdef"[size & 15];
        size >>= 4;
    }
    text(out, "\r\n");
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}
