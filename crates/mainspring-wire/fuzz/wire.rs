//! Coverage-guided fuzzing of the decoders: the laws of `mainspring-wire/tests/it/laws.rs` on the
//! inputs that libFuzzer finds. The first two bytes choose the codec and how the rest is cut.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use mainspring_wire::Codec;

#[path = "../tests/it/laws.rs"]
mod laws;
#[path = "../tests/it/mutate.rs"]
#[allow(dead_code, reason = "only its cuts are needed here")]
mod mutate;

static CODECS: OnceLock<Vec<Codec>> = OnceLock::new();

fuzz_target!(|input: &[u8]| {
    let [choice, seed, bytes @ ..] = input else { return };
    let codecs = CODECS.get_or_init(laws::codecs);
    let pieces = mutate::cut(&mut mutate::Rng(u64::from(*seed)), bytes);
    laws::check(&codecs[usize::from(*choice) % codecs.len()], bytes, &pieces);
});
