// The only file that includes headers of TensorFlow.

#include "predictor.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/example/example.pb.h"
#include "tensorflow/core/framework/graph.pb.h"
#include "tensorflow/core/framework/node_def_util.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/platform/env.h"
#include "tensorflow/core/protobuf/meta_graph.pb.h"
#include "tensorflow/core/public/session.h"

namespace tfdist {
namespace {

namespace tf = tensorflow;

// In the order of DataType.
constexpr tf::DataType kTypes[] = {tf::DT_FLOAT,  tf::DT_DOUBLE, tf::DT_INT8,  tf::DT_INT16,
                                   tf::DT_INT32,  tf::DT_INT64,  tf::DT_UINT8, tf::DT_UINT16,
                                   tf::DT_UINT32, tf::DT_UINT64, tf::DT_BOOL,  tf::DT_STRING};
static_assert(std::size(kTypes) == std::variant_size_v<Values>);

// An error of a file that is loaded is not the fault of a request.
enum class Phase { kLoad, kPredict };

void Check(const absl::Status& status, Phase phase) {
  if (status.ok()) return;
  auto code = Error::Code::kInternal;
  if (phase == Phase::kPredict && (absl::IsInvalidArgument(status) || absl::IsOutOfRange(status))) {
    code = Error::Code::kInvalid;
  } else if (absl::IsResourceExhausted(status) || absl::IsUnavailable(status)) {
    code = Error::Code::kUnavailable;
  }
  // The first line: below it TensorFlow lists the Python stack that made the operation.
  const std::string text(status.message());
  throw Error(code, text.substr(0, text.find('\n')));
}

DataType TypeOf(tf::DataType dtype) {
  const auto found = std::find(std::begin(kTypes), std::end(kTypes), dtype);
  if (found == std::end(kTypes)) {
    throw Error(Error::Code::kInternal,
                "the type " + tf::DataTypeString(dtype) + " is not supported");
  }
  return static_cast<DataType>(found - std::begin(kTypes));
}

tf::Tensor ToTensorFlow(const Tensor& tensor) {
  tf::Tensor made(kTypes[static_cast<int>(tensor.dtype())], tf::TensorShape(tensor.shape()));
  std::visit(
      [&](const auto& values) {
        using T = typename std::decay_t<decltype(values)>::value_type;
        if constexpr (std::is_same_v<T, std::string>) {
          auto flat = made.flat<tf::tstring>();
          for (size_t i = 0; i < values.size(); ++i) flat(i) = values[i];
        } else if (!values.empty()) {
          std::copy(values.begin(), values.end(), static_cast<T*>(made.data()));
        }
      },
      tensor.any_values());
  return made;
}

Tensor FromTensorFlow(const tf::Tensor& tensor) {
  Shape shape;
  for (const auto& size : tensor.shape()) shape.push_back(size.size);
  Values values = NoValues(TypeOf(tensor.dtype()));
  std::visit(
      [&](auto& made) {
        using T = typename std::decay_t<decltype(made)>::value_type;
        if constexpr (std::is_same_v<T, std::string>) {
          const auto flat = tensor.flat<tf::tstring>();
          for (int64_t i = 0; i < flat.size(); ++i) made.emplace_back(flat(i));
        } else {
          const T* first = static_cast<const T*>(tensor.data());
          made.assign(first, first + tensor.NumElements());
        }
      },
      values);
  return Tensor(std::move(shape), std::move(values));
}

Slot SlotOf(const tf::TensorInfo& info) {
  Slot slot;
  slot.dtype = TypeOf(info.dtype());
  slot.any_rank = info.tensor_shape().unknown_rank();
  for (const auto& size : info.tensor_shape().dim()) slot.shape.push_back(size.size());
  slot.is_sparse = info.has_coo_sparse();
  slot.tensor = info.name();
  return slot;
}

// A signature and what runs it.
struct Bound {
  Signature about;
  std::vector<std::string> outputs;  // in the order in which they are fetched
  tf::Session::CallableHandle handle = 0;
};

class LoadedModel : public Predictor {
 public:
  LoadedModel(std::unique_ptr<tf::Session> session,
              const std::map<std::string, tf::SignatureDef>& signatures)
      : session_(std::move(session)) {
    for (const auto& [name, def] : signatures) {
      Bound bound;
      bound.about.method = def.method_name();
      try {
        Bind(def, &bound);
      } catch (const Error& error) {
        bound.about.unsupported = error.what();
      }
      signatures_[name] = bound.about;
      bound_[name] = std::move(bound);
    }
  }

  ~LoadedModel() override { session_->Close().IgnoreError(); }

  const Signatures& signatures() const override { return signatures_; }

  Outputs Predict(const Inputs& inputs, const std::string& signature) const override {
    FindSignature(signatures_, signature);
    const Bound& bound = bound_.at(signature);
    for (const auto& [name, input] : inputs) {
      if (bound.about.inputs.count(name) == 0) ThrowInvalid("there is no input " + name);
    }
    std::vector<tf::Tensor> feeds, fetched;
    for (const auto& [name, slot] : bound.about.inputs) {
      const auto input = inputs.find(name);
      if (input == inputs.end()) ThrowInvalid("the input " + name + " is missing");
      // A tensor that does not fit would abort the process in some operations.
      CheckFits(name, slot, input->second);
      if (const auto* sparse = std::get_if<SparseTensor>(&input->second)) {
        feeds.push_back(ToTensorFlow(sparse->indices));
        feeds.push_back(ToTensorFlow(sparse->values));
        feeds.push_back(ToTensorFlow(sparse->dense_shape));
      } else {
        feeds.push_back(ToTensorFlow(std::get<Tensor>(input->second)));
      }
    }
    Check(session_->RunCallable(bound.handle, feeds, &fetched, nullptr), Phase::kPredict);
    Outputs outputs;
    for (size_t i = 0; i < fetched.size(); ++i) {
      outputs.emplace(bound.outputs[i], FromTensorFlow(fetched[i]));
    }
    return outputs;
  }

 private:
  void Bind(const tf::SignatureDef& def, Bound* bound) {
    tf::CallableOptions options;
    // The operations run in the calling thread: a request is too short to be worth a switch.
    options.mutable_run_options()->set_inter_op_thread_pool(-1);
    // Sorted, like the inputs in Predict.
    const std::map<std::string, tf::TensorInfo> inputs(def.inputs().begin(), def.inputs().end());
    for (const auto& [name, info] : inputs) {
      bound->about.inputs.emplace(name, SlotOf(info));
      if (info.has_coo_sparse()) {
        options.add_feed(info.coo_sparse().indices_tensor_name());
        options.add_feed(info.coo_sparse().values_tensor_name());
        options.add_feed(info.coo_sparse().dense_shape_tensor_name());
      } else {
        options.add_feed(info.name());
      }
    }
    const std::map<std::string, tf::TensorInfo> outputs(def.outputs().begin(), def.outputs().end());
    for (const auto& [name, info] : outputs) {
      if (info.has_coo_sparse()) {
        throw Error(Error::Code::kInternal, "the output " + name + " is a SparseTensor");
      }
      bound->about.outputs.emplace(name, SlotOf(info));
      bound->outputs.push_back(name);
      options.add_fetch(info.name());
    }
    Check(session_->MakeCallable(options, &bound->handle), Phase::kLoad);
  }

  std::unique_ptr<tf::Session> session_;
  std::map<std::string, Bound> bound_;
  Signatures signatures_;
};

// Many requests at the same time use the processors better than many threads for one request.
tf::SessionOptions OneThreadPerRequest() {
  tf::SessionOptions options;
  options.config.set_intra_op_parallelism_threads(1);
  options.config.set_inter_op_parallelism_threads(1);
  return options;
}

tf::TensorInfo InfoOf(const tf::NodeDef& node) {
  tf::TensorInfo info;
  info.set_name(node.name() + ":0");
  if (node.op() == "Placeholder") {
    info.set_dtype(node.attr().at("dtype").type());
    *info.mutable_tensor_shape() = node.attr().at("shape").shape();
    return info;
  }
  const tf::OpDef* op = nullptr;
  Check(tf::OpRegistry::Global()->LookUpOpDef(node.op(), &op), Phase::kLoad);
  tf::DataTypeVector types;
  Check(tf::OutputTypesForNode(node, *op, &types), Phase::kLoad);
  info.set_dtype(types.empty() ? tf::DT_INVALID : types.front());
  info.mutable_tensor_shape()->set_unknown_rank(true);
  return info;
}

std::string NodeOf(const std::string& input) {
  const size_t start = input[0] == '^';
  return input.substr(start, input.find(':') - start);
}

using Nodes = std::map<std::string, const tf::NodeDef*>;

// The operations that return a tensor which no operation of the graph reads.
std::vector<std::string> UnreadOutputs(const Nodes& nodes) {
  std::set<std::string> read;
  for (const auto& [name, node] : nodes) {
    for (const auto& input : node->input()) read.insert(NodeOf(input));
  }
  std::vector<std::string> names;
  for (const auto& [name, node] : nodes) {
    if (node->op() == "Placeholder" || read.count(name) > 0) continue;
    if (InfoOf(*node).dtype() != tf::DT_INVALID) names.push_back(name);
  }
  return names;
}

// The placeholders from which these operations are computed.
std::vector<const tf::NodeDef*> NeededPlaceholders(const Nodes& nodes,
                                                   std::vector<std::string> pending) {
  std::vector<const tf::NodeDef*> found;
  std::set<std::string> seen(pending.begin(), pending.end());
  while (!pending.empty()) {
    const auto node = nodes.find(pending.back());
    pending.pop_back();
    if (node == nodes.end()) continue;
    if (node->second->op() == "Placeholder") found.push_back(node->second);
    for (const auto& input : node->second->input()) {
      if (seen.insert(NodeOf(input)).second) pending.push_back(NodeOf(input));
    }
  }
  return found;
}

}  // namespace

std::string Serialize(const Example& example) {
  tf::Example made;
  for (const auto& [name, feature] : example) {
    auto& target = (*made.mutable_features()->mutable_feature())[name];
    if (const auto* numbers = std::get_if<std::vector<int64_t>>(&feature)) {
      target.mutable_int64_list()->mutable_value()->Add(numbers->begin(), numbers->end());
    } else if (const auto* reals = std::get_if<std::vector<float>>(&feature)) {
      target.mutable_float_list()->mutable_value()->Add(reals->begin(), reals->end());
    } else {
      for (const auto& bytes : std::get<std::vector<std::string>>(feature)) {
        target.mutable_bytes_list()->add_value(bytes);
      }
    }
  }
  return made.SerializeAsString();
}

std::unique_ptr<Predictor> Predictor::Load(const std::string& folder) {
  tf::SavedModelBundle bundle;
  Check(tf::LoadSavedModel(OneThreadPerRequest(), tf::RunOptions(), folder, {"serve"}, &bundle),
        Phase::kLoad);
  std::map<std::string, tf::SignatureDef> signatures;
  for (const auto& [name, def] : bundle.GetSignatures()) {
    // The loader has run this one, which initializes lookup tables.
    if (name.rfind("__", 0) != 0) signatures[name] = def;
  }
  return std::make_unique<LoadedModel>(std::move(bundle.session), signatures);
}

std::unique_ptr<Predictor> Predictor::LoadGraph(const std::string& file,
                                                const std::vector<std::string>& outputs,
                                                const std::string& checkpoint) {
  tf::GraphDef graph;
  Check(tf::ReadBinaryProto(tf::Env::Default(), file, &graph), Phase::kLoad);
  Nodes nodes;
  for (auto& node : *graph.mutable_node()) {
    node.clear_device();  // tasks of the training
    nodes[node.name()] = &node;
  }
  if (outputs.empty() && !checkpoint.empty()) {
    ThrowInvalid("name the outputs: no operation reads those that save the variables either");
  }
  tf::SignatureDef def;
  const auto names = outputs.empty() ? UnreadOutputs(nodes) : outputs;
  for (const auto& name : names) {
    const auto found = nodes.find(name);
    if (found == nodes.end()) {
      throw Error(Error::Code::kNotFound, file + " has no operation " + name);
    }
    (*def.mutable_outputs())[name] = InfoOf(*found->second);
  }
  for (const auto* node : NeededPlaceholders(nodes, names)) {
    (*def.mutable_inputs())[node->name()] = InfoOf(*node);
  }
  std::unique_ptr<tf::Session> session(tf::NewSession(OneThreadPerRequest()));
  Check(session->Create(graph), Phase::kLoad);
  if (!checkpoint.empty()) {
    tf::Tensor prefix(tf::DT_STRING, tf::TensorShape());
    prefix.scalar<tf::tstring>()() = checkpoint;
    Check(session->Run({{"save/Const:0", prefix}}, {}, {"save/restore_all"}, nullptr),
          Phase::kLoad);
  }
  const std::map<std::string, tf::SignatureDef> signatures = {{"serving_default", def}};
  return std::make_unique<LoadedModel>(std::move(session), signatures);
}

}  // namespace tfdist
