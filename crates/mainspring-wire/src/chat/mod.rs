//! OpenAI Chat Completions, as most servers speak it: `/chat/completions`.
//!
//! # Source
//! OpenAI API reference, "Chat"; for reasoning the documents of DeepSeek ("Thinking mode"), vLLM
//! ("Reasoning outputs") and OpenRouter ("Preserving reasoning").

mod answer;
mod request;

pub(crate) use answer::{Stream, decode};
pub(crate) use request::{message, request};
