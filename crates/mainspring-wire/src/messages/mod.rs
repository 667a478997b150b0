//! Anthropic Messages: `/messages`.
//!
//! Prompt caches: the end of the tools and of the system prompt are marked, and the mark at the top
//! of the request moves by itself to the last message, so that the bytes of earlier messages never
//! change.
//!
//! # Source
//! Anthropic API reference, "Messages", version 2023-06-01, and "Streaming"; "Prompt caching",
//! section "Automatic caching"; "Extended thinking", section "Preserving thinking blocks".

mod answer;
mod request;
mod stream;

pub(crate) use answer::decode;
pub(crate) use request::{message, request};
pub(crate) use stream::Stream;
