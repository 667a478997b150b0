//! Recorded answers of each API, whole and as streams; the same ones that the official SDKs read in
//! `tests/api/test_sdk.py`.

use mainspring_session::Api;

/// One recorded answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) api: Api,
    pub(crate) name: &'static str,
    pub(crate) is_stream: bool,
    pub(crate) bytes: &'static [u8],
}

macro_rules! samples {
    ($($api:ident $folder:literal: $($name:literal)+;)+) => {
        [$($(Sample {
            api: Api::$api,
            name: $name,
            is_stream: false,
            bytes: include_bytes!(concat!("../../../../tests/fixtures/wire/", $folder, "/", $name)),
        },)+)+]
    };
}

/// All of them.
pub(crate) fn samples() -> Vec<Sample> {
    let all = samples! {
        ChatCompletions "chat": "text.json" "tools.json" "reasoning.json" "details.json"
            "refusal.json" "logprobs.json" "text.sse" "tools.sse" "reasoning.sse" "details.sse"
            "refusal.sse" "logprobs.sse" "error.sse";
        Responses "responses": "text.json" "tools.json" "reasoning.json" "refusal.json"
            "logprobs.json" "incomplete.json" "failed.json" "text.sse" "tools.sse" "reasoning.sse"
            "refusal.sse" "logprobs.sse" "incomplete.sse" "failed.sse" "error.sse";
        Messages "messages": "text.json" "tools.json" "reasoning.json" "refusal.json" "length.json"
            "text.sse" "tools.sse" "reasoning.sse" "refusal.sse" "length.sse" "error.sse";
    };
    all.map(|sample| Sample { is_stream: sample.name.ends_with(".sse"), ..sample }).to_vec()
}

/// The sample of this name.
pub(crate) fn sample(api: Api, name: &str) -> Sample {
    samples().into_iter().find(|sample| sample.api == api && sample.name == name).unwrap()
}
