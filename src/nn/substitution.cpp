#include <lambda_gelu/math/relu_gap.h>
#include <lambda_gelu/nn/substitution.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <iomanip>
#include <sstream>
#include <utility>

#include "nn/value_error.h"

namespace lambda_gelu {
namespace {

SubstitutedSite describe(const Site& site) {
  at::NoGradGuard no_grad;
  const auto hardness = site.module->hardness();
  const double least = hardness.min().item<double>();
  return {site.name,      site.also_at, least, hardness.mean().item<double>(), hardness.max().item<double>(),
          gate_gap(least)};
}

// What the statistics say of a swap at the present lambda.
void predict(SubstitutedSite& site, const LambdaGELUImpl& module, const SiteStatistics& statistics) {
  at::NoGradGuard no_grad;
  const auto tensor = module.hardness().detach().to(at::kCPU, at::kDouble).contiguous();
  const std::vector<double> hardness(tensor.const_data_ptr<double>(), tensor.const_data_ptr<double>() + tensor.numel());
  with_value_errors([&] {
    const auto whole = statistics.whole();
    site.effective_hardness = site.hardness_mean * whole.std();
    site.ser_db = ser_db(statistics.channels, hardness);
    site.expected_gap = expected_gap(statistics.channels, hardness);
    site.zeros_before = near_zero_share(statistics.channels, hardness);
    site.zeros_after = whole.zero_share();
  });
}

SubstitutionReport swap(const std::vector<Site>& sites, SubstitutionReport report) {
  for (const auto& site : sites) site.module->set_substituted(true);
  return report;
}

std::string all_names(const SubstitutedSite& site, const char* separator) {
  std::string names = site.name;
  for (const auto& name : site.also_at) names += separator + name;
  return names;
}

struct Column {
  const char* name;
  const char* title;  // in the table
  std::optional<double> (*value)(const SubstitutedSite&);
};
constexpr Column kColumns[] = {
    {"hardness_min", "hardness min", [](const SubstitutedSite& s) { return std::optional(s.hardness_min); }},
    {"hardness_mean", "mean", [](const SubstitutedSite& s) { return std::optional(s.hardness_mean); }},
    {"hardness_max", "max", [](const SubstitutedSite& s) { return std::optional(s.hardness_max); }},
    {"gate_gap", "gate gap", [](const SubstitutedSite& s) { return std::optional(s.gate_gap); }},
    {"effective_hardness", "kappa", [](const SubstitutedSite& s) { return s.effective_hardness; }},
    {"ser_db", "SER dB", [](const SubstitutedSite& s) { return s.ser_db; }},
    {"expected_gap", "mean gap", [](const SubstitutedSite& s) { return s.expected_gap; }},
    {"zeros_before", "zeros before", [](const SubstitutedSite& s) { return s.zeros_before; }},
    {"zeros_after", "zeros after", [](const SubstitutedSite& s) { return s.zeros_after; }},
};

// The shortest digits that give the same double.
std::string exact(double value) {
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
  return {digits, end};
}

std::string json_number(std::optional<double> value) {
  if (!value) return "null";
  return std::isfinite(*value) ? exact(*value) : '"' + exact(*value) + '"';
}

std::string json_string(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20) {
      constexpr char kDigits[] = "0123456789abcdef";
      quoted += std::string("\\u00") + kDigits[c >> 4] + kDigits[c & 15];
      continue;
    }
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + '"';
}

std::string csv_cell(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + '"';
}

}  // namespace

std::ostream& operator<<(std::ostream& stream, const SubstitutionReport& report) {
  size_t width = 4;
  for (const auto& site : report.sites) width = std::max(width, all_names(site, ", ").size());
  std::vector<const Column*> columns;
  for (const auto& column : kColumns) {
    const auto is_known = [&](const SubstitutedSite& site) { return column.value(site).has_value(); };
    if (std::any_of(report.sites.begin(), report.sites.end(), is_known)) columns.push_back(&column);
  }
  std::ostringstream text;  // keeps the format flags of `stream` as they are
  const auto begin_row = [&](const std::string& name) {
    text << "\n" << std::left << std::setw(static_cast<int>(width)) << name << std::right;
  };
  text << report.sites.size() << (report.sites.size() == 1 ? " site is" : " sites are") << " ReLU now"
       << std::setprecision(4);
  begin_row("site");
  for (const auto* column : columns) text << std::setw(13) << column->title;
  for (const auto& site : report.sites) {
    begin_row(all_names(site, ", "));
    for (const auto* column : columns) {
      text << std::setw(13);
      if (const auto value = column->value(site)) {
        text << *value;
      } else {
        text << "";
      }
    }
  }
  return stream << text.str() << "\n";
}

std::string to_csv(const SubstitutionReport& report) {
  std::string text = "name,also_at";
  for (const auto& column : kColumns) text += std::string(",") + column.name;
  for (const auto& site : report.sites) {
    std::string others;
    for (const auto& name : site.also_at) others += (others.empty() ? "" : " ") + name;
    text += "\n" + csv_cell(site.name) + "," + csv_cell(others);
    for (const auto& column : kColumns) {
      const auto value = column.value(site);
      text += "," + (value ? exact(*value) : "");
    }
  }
  return text + "\n";
}

std::string to_json(const SubstitutionReport& report) {
  std::string sites;
  for (const auto& site : report.sites) {
    std::string others;
    for (const auto& name : site.also_at) others += (others.empty() ? "" : ", ") + json_string(name);
    sites += std::string(sites.empty() ? "" : ",") + "\n    {\"name\": " + json_string(site.name) + ", \"also_at\": [" +
             others + "]";
    for (const auto& column : kColumns) {
      sites += std::string(", \"") + column.name + "\": " + json_number(column.value(site));
    }
    sites += "}";
  }
  return "{\n  \"sites\": [" + sites + "\n  ]\n}\n";
}

SubstitutionReport to_relu_(torch::nn::Module& model) {
  const auto sites = find_sites(model);
  SubstitutionReport report;
  for (const auto& site : sites) report.sites.push_back(describe(site));
  return swap(sites, std::move(report));
}

SubstitutionReport to_relu_(torch::nn::Module& model, const ActivationStatistics& statistics) {
  const auto sites = find_sites(model);
  statistics.check_model(model);
  statistics.require_complete("to_relu_");
  SubstitutionReport report;
  for (const auto& site : sites) {
    report.sites.push_back(describe(site));
    predict(report.sites.back(), *site.module, statistics.at(site.name));
  }
  return swap(sites, std::move(report));
}

ReluSubstituted::ReluSubstituted(torch::nn::Module& model) : sites_(find_sites(model)) {
  for (const auto& site : sites_) ++site.module->relu_guards_;
}

ReluSubstituted::~ReluSubstituted() {
  for (const auto& site : sites_) --site.module->relu_guards_;
}

}  // namespace lambda_gelu
