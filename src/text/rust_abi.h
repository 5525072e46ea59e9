// The C ABI of src/text/rust. Only this room includes it.
//
// Every function that can fail returns a CapstanTextStatus; on success it fills `out`, otherwise
// `error` with a UTF-8 message. Both are then owned by the caller and freed with the functions
// below. Handles are immutable and may be used from several threads at once.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

enum CapstanTextStatus : int32_t {
  kCapstanTextOk = 0,
  kCapstanTextInvalid = 1,   // wrong input: not UTF-8, not JSON, unsupported file
  kCapstanTextRaised = 2,    // the template called raise_exception()
  kCapstanTextLimit = 3,     // the template ran past its instruction limit
  kCapstanTextInternal = 4,  // a panic was caught
};

struct CapstanTextSlice {  // borrowed
  const char* data;
  size_t size;
};
struct CapstanTextBytes {  // owned by the crate
  uint8_t* data;
  size_t size;
};
struct CapstanTextIds {  // owned by the crate
  uint32_t* data;
  size_t size;
};

void capstan_text_bytes_free(CapstanTextBytes bytes);
void capstan_text_ids_free(CapstanTextIds ids);

struct CapstanTokenizer;
struct CapstanTokenizerPostOptions {
  int32_t replace;  // non-zero: the post-processor becomes [bos] text [eos], empty ones left out
  CapstanTextSlice bos, eos;
};
struct CapstanTokenizerTokens {
  CapstanTextBytes text;   // all token strings, one after the other
  CapstanTextIds ends;     // where that of id i ends
  CapstanTextBytes flags;  // per id: 1 present, 2 added, 4 special
};

int32_t capstan_tokenizer_create(CapstanTextSlice json, const CapstanTokenizerPostOptions* options,
                                 CapstanTokenizer** out, CapstanTextBytes* error);
void capstan_tokenizer_free(CapstanTokenizer* tokenizer);
int32_t capstan_tokenizer_tokens(const CapstanTokenizer* tokenizer, CapstanTokenizerTokens* out,
                                 CapstanTextBytes* error);
int32_t capstan_tokenizer_encode(const CapstanTokenizer* tokenizer, CapstanTextSlice text,
                                 int32_t add_special_tokens, CapstanTextIds* out,
                                 CapstanTextBytes* error);
int32_t capstan_tokenizer_to_json(const CapstanTokenizer* tokenizer, CapstanTextBytes* out,
                                  CapstanTextBytes* error);

struct CapstanTemplate;
int32_t capstan_template_compile(CapstanTextSlice source, CapstanTextSlice bos,
                                 CapstanTextSlice eos, CapstanTemplate** out,
                                 CapstanTextBytes* error);
void capstan_template_free(CapstanTemplate* chat_template);
int32_t capstan_template_render(const CapstanTemplate* chat_template, CapstanTextSlice context_json,
                                CapstanTextBytes* out, CapstanTextBytes* error);
}
