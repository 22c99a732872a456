#include "tests/cuda/hosted_ops.h"

namespace quern {

class HostedOps::Mirror {
 public:
  explicit Mirror(Ops& ops) : ops_(ops) {}
  ~Mirror() {
    for (auto& [host, copy] : copies_) {
      const TensorView device = copy.view();
      ops_.Download(device, {host, DType::kU8, 1, device.cols, device.cols});
    }
  }

  void* Bytes(void* data, int64_t bytes) {
    if (data == nullptr || bytes == 0) return data;
    Tensor& copy = copies_[data];
    if (copy.cols() < bytes) {
      copy = Tensor(DType::kU8, 1, bytes, ops_.memory());
      ops_.Upload({data, DType::kU8, 1, bytes, bytes}, copy);
    }
    return copy.view().data;
  }
  // The largest of views that share an address must come first.
  template <typename... Views>
  void operator()(Views&... views) {
    (Replace(views), ...);
  }
  void Cast(OutputCast& cast) { (*this)(cast.column_scale, cast.codes, cast.scale, cast.amax, cast.counts); }
  // `tables` and `out` must live as long as the call.
  std::vector<SequenceRows> Sequences(std::span<const SequenceRows> sequences, const KvLayout& layout) {
    std::vector<SequenceRows> out;
    for (SequenceRows s : sequences) {
      const int64_t pages = (s.context + s.count + KvLayout::kPageTokens - 1) / KvLayout::kPageTokens;
      if (s.pages != nullptr && layout.kv_heads > 0) {
        auto table = std::make_unique<std::vector<void*>>();
        for (int64_t p = 0; p < pages; ++p) {
          const bool small = s.pruned != nullptr && p < s.pruned->pages;
          table->push_back(Bytes(
              s.pages[p], small ? s.pruned->page_elements(layout) * DTypeSize(layout.dtype) : layout.page_bytes()));
        }
        s.pages = table->data();
        tables_.push_back(std::move(table));
      }
      s.selection = Bytes(s.selection, layout.selective ? pages * layout.selection_elements() * 4 : 0);
      out.push_back(s);
    }
    return out;
  }

 private:
  void Replace(TensorView& view) {
    if (view.empty() || view.rows * view.cols == 0) return;
    view.data = Bytes(view.data, ((view.rows - 1) * view.stride + view.cols) * DTypeSize(view.dtype));
  }

  Ops& ops_;
  std::map<void*, Tensor> copies_;
  std::vector<std::unique_ptr<std::vector<void*>>> tables_;
};

void HostedOps::Pack(const PackArgs& given) {
  PackArgs args = given;
  Mirror mirror(*device_);
  mirror(args.input_scale, args.scale);  // the weight may be the host's
  device_->Pack(args);
}
void HostedOps::Quantize(const QuantizeArgs& given) {
  QuantizeArgs args = given;
  Mirror mirror(*device_);
  mirror(args.x, args.column_scale, args.codes, args.scale, args.amax, args.counts);
  device_->Quantize(args);
}
void HostedOps::Dequantize(const DequantizeArgs& given) {
  DequantizeArgs args = given;
  Mirror mirror(*device_);
  mirror(args.codes, args.scale, args.column_scale, args.y);
  device_->Dequantize(args);
}
void HostedOps::ColumnAmax(const ColumnAmaxArgs& given) {
  ColumnAmaxArgs args = given;
  Mirror mirror(*device_);
  mirror(args.x, args.amax);
  device_->ColumnAmax(args);
}
void HostedOps::MatMul(const MatMulArgs& given) {
  MatMulArgs args = given;
  Mirror mirror(*device_);
  mirror(args.a, args.a_scale, args.c, args.bias);
  device_->MatMul(args);
}
void HostedOps::MatMulGradWeight(const MatMulGradWeightArgs& given) {
  MatMulGradWeightArgs args = given;
  Mirror mirror(*device_);
  mirror(args.dy, args.x, args.dw);
  device_->MatMulGradWeight(args);
}
void HostedOps::BiasBackward(const BiasBackwardArgs& given) {
  BiasBackwardArgs args = given;
  Mirror mirror(*device_);
  mirror(args.dy, args.dbias);
  device_->BiasBackward(args);
}
void HostedOps::Embedding(const EmbeddingArgs& given) {
  EmbeddingArgs args = given;
  Mirror mirror(*device_);
  mirror(args.table, args.out);
  device_->Embedding(args);
}
void HostedOps::EmbeddingBackward(const EmbeddingBackwardArgs& given) {
  EmbeddingBackwardArgs args = given;
  Mirror mirror(*device_);
  mirror(args.dout, args.dtable);
  device_->EmbeddingBackward(args);
}
void HostedOps::RmsNorm(const RmsNormArgs& given) {
  RmsNormArgs args = given;
  Mirror mirror(*device_);
  mirror(args.x, args.weight, args.y, args.inv_rms);
  mirror.Cast(args.cast);
  device_->RmsNorm(args);
}
void HostedOps::RmsNormBackward(const RmsNormBackwardArgs& given) {
  RmsNormBackwardArgs args = given;
  Mirror mirror(*device_);
  mirror(args.dy, args.x, args.weight, args.inv_rms, args.dx, args.dweight);
  device_->RmsNormBackward(args);
}
void HostedOps::Rotary(const RotaryArgs& given) {
  RotaryArgs args = given;
  Mirror mirror(*device_);
  mirror(args.qkv, args.out, args.cos, args.sin, args.q_norm, args.k_norm);
  KvWriteArgs write;
  std::vector<SequenceRows> sequences;
  if (args.pages != nullptr) {
    write = *args.pages;
    sequences = mirror.Sequences(write.sequences, write.layout);
    write.sequences = sequences;
    args.pages = &write;
  }
  device_->Rotary(args);
}
void HostedOps::RotaryBackward(const RotaryBackwardArgs& given) {
  RotaryBackwardArgs args = given;
  Mirror mirror(*device_);
  RotaryArgs& f = args.forward;
  mirror(f.qkv, f.cos, f.sin, f.q_norm, f.k_norm, args.dqkv, args.dq_norm, args.dk_norm);
  device_->RotaryBackward(args);
}
void HostedOps::KvWrite(const KvWriteArgs& given) {
  KvWriteArgs args = given;
  Mirror mirror(*device_);
  mirror(args.qkv);
  const auto sequences = mirror.Sequences(args.sequences, args.layout);
  args.sequences = sequences;
  device_->KvWrite(args);
}
void HostedOps::Attention(const AttentionArgs& given) {
  AttentionArgs args = given;
  Mirror mirror(*device_);
  mirror(args.q, args.out, args.lse, args.live);
  const auto sequences = mirror.Sequences(args.sequences, args.layout);
  args.sequences = sequences;
  device_->Attention(args);
}
void HostedOps::AttentionBackward(const AttentionBackwardArgs& given) {
  AttentionBackwardArgs args = given;
  Mirror mirror(*device_);
  mirror(args.qkv, args.out, args.lse, args.dout, args.dqkv, args.dgain);
  std::vector<SequenceRows> sequences(args.sequences.begin(), args.sequences.end());
  for (SequenceRows& s : sequences) {
    s.pages = nullptr;
    s.selection = nullptr;
  }
  args.sequences = sequences;
  device_->AttentionBackward(args);
}
void HostedOps::SwiGlu(const SwiGluArgs& given) {
  SwiGluArgs args = given;
  Mirror mirror(*device_);
  mirror(args.gate_up, args.h);
  mirror.Cast(args.cast);
  device_->SwiGlu(args);
}
void HostedOps::SwiGluBackward(const SwiGluBackwardArgs& given) {
  SwiGluBackwardArgs args = given;
  Mirror mirror(*device_);
  mirror(args.gate_up, args.dh, args.dgate_up);
  device_->SwiGluBackward(args);
}
void HostedOps::LogSoftmax(const LogSoftmaxArgs& given) {
  LogSoftmaxArgs args = given;
  Mirror mirror(*device_);
  mirror(args.logits, args.lse, args.log_prob, args.mean_log_prob, args.entropy);
  device_->LogSoftmax(args);
}
void HostedOps::LogSoftmaxBackward(const LogSoftmaxBackwardArgs& given) {
  LogSoftmaxBackwardArgs args = given;
  Mirror mirror(*device_);
  mirror(args.logits, args.lse, args.a, args.b, args.c, args.dlogits);
  device_->LogSoftmaxBackward(args);
}
void HostedOps::MaxRatio(const MaxRatioArgs& given) {
  MaxRatioArgs args = given;
  Mirror mirror(*device_);
  mirror(args.value_logits, args.behaviour_logits, args.max_ratio);
  device_->MaxRatio(args);
}
void HostedOps::GatherRows(const GatherRowsArgs& given) {
  GatherRowsArgs args = given;
  Mirror mirror(*device_);
  mirror(args.x, args.y);
  device_->GatherRows(args);
}
void HostedOps::ScatterRows(const ScatterRowsArgs& given) {
  ScatterRowsArgs args = given;
  Mirror mirror(*device_);
  mirror(args.x, args.y);
  device_->ScatterRows(args);
}
void HostedOps::AdamW(const AdamWArgs& given) {
  AdamWArgs args = given;
  Mirror mirror(*device_);
  mirror(args.param, args.grad, args.m, args.v, args.m_scale, args.v_scale);
  device_->AdamW(args);
}
double HostedOps::SquaredNorm(const TensorView& x) {
  TensorView view = x;
  Mirror mirror(*device_);
  mirror(view);
  return device_->SquaredNorm(view);
}
void HostedOps::Lerp(const TensorView& given_x, float alpha, const TensorView& given_y) {
  TensorView x = given_x, y = given_y;
  Mirror mirror(*device_);
  mirror(x, y);
  device_->Lerp(x, alpha, y);
}
void HostedOps::Cast(const TensorView& given_x, const TensorView& given_y) {
  TensorView x = given_x, y = given_y;
  Mirror mirror(*device_);
  mirror(x, y);
  device_->Cast(x, y);
}
void HostedOps::Fill(const TensorView& given, float value) {
  TensorView x = given;
  Mirror mirror(*device_);
  mirror(x);
  device_->Fill(x, value);
}

}  // namespace quern
